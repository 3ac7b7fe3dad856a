"""A backend over another OpenAI-compatible server."""
