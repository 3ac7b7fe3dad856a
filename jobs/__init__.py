"""Training jobs: a queue on disk, one process that works it off, scores at the end, and what the pages ask about it."""
