"""Advise page: prompt, retrieve or fine-tune, for the rows of one data set."""
