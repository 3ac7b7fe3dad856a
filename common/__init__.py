"""What every room may use: files, paths, messages, command-line options."""
