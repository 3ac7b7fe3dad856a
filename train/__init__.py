"""Training of adapters: from a data set to an adapter folder, in its own process because PEFT changes the model."""
