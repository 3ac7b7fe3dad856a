"""Readers of data sets and of uploaded tables."""
