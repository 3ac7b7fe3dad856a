"""The Results page: runs from files, their tables and plots, and every problem with all methods' answers."""
