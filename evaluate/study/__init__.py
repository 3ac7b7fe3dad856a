"""Reproduction of the study arXiv 2308.10462: jobs, their cost, and tables, figures and findings from the results."""
