"""What a real model makes of tools and formats on this node: are its answers what they have to be?

python -m benches.answers MODEL.gguf                    all parts
python -m benches.answers MODEL.gguf --parts tools,loops
"""
