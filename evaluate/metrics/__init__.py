"""Exact match, parse rate, pass@k and CodeBLEU."""
