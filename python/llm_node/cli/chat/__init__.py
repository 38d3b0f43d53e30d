"""A chat in a terminal: what `llm-node run` shows and asks. It talks HTTP, and knows no node from inside."""
