"""The same training job on Hugging Face Jobs: sent there, followed, and its adapter fetched."""
