"""Benchmarks: each script measures one part of the project against a reference and prints one JSON line."""
