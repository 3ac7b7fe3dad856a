"""The OpenAI-compatible API over the engine, for `python -m serve` and beside the pages."""
