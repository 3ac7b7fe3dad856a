"""Runs a problem's tests against generated code."""
