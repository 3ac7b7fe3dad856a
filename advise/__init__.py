"""Advice: whether to prompt, to retrieve examples or to fine-tune, for the rows of one data set (python -m advise)."""
