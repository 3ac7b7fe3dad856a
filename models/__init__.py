"""Base models and the embedding model: where they are, how they are loaded, memory and threads."""
