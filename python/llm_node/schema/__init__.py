"""Wire shapes: what clients may send, strictly. Pure data; nothing of ours is imported here."""
