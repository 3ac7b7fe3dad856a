"""The study, repeated: which runs it takes, what they cost, and its tables, figures and findings from their results."""
