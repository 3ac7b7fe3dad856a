"""The same training job on Hugging Face Jobs."""
