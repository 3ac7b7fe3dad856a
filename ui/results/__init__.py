"""Results page: tables, plots and problems of evaluation runs."""
