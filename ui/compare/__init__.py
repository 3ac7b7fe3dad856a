"""Compare page: one question, several methods, their answers side by side."""
