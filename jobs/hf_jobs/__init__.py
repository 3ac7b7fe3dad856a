"""Training jobs on Hugging Face Jobs."""
