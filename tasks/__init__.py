"""Tasks: problems, prompts, methods and data sets. Imports errors and common only, and no torch."""
