"""OpenAI's Responses API: the requests."""
