"""Runs generated code in a process that the kernel isolates."""
