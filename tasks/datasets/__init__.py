"""Data sets that problems and examples come from, and tables that people upload."""
