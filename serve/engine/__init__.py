"""The engine: queue, scheduler, adapter cache and the threads that step the model."""
