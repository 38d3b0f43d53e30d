"""llama-server's own routes: the requests."""
