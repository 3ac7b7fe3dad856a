"""Training jobs: a queue on disk, a worker process, held-out scoring, and the API that the pages use."""
