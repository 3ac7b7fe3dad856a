"""Data page: data sets of the owner of the app, their rows, and runs over all held-out rows."""
