"""The Hugging Face Space: its card, its files, and the command that publishes it."""
