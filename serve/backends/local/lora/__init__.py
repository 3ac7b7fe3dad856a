"""Adapters of all kinds in one batch."""
