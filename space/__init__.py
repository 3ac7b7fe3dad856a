"""The Space: its card, and the command that builds its files and publishes them."""
