"""Anthropic's Messages API: the requests."""
