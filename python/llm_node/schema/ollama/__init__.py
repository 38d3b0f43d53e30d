"""Ollama's API: the requests."""
