"""Blind votes between two methods: kept in SQLite, and turned into ratings with intervals."""
