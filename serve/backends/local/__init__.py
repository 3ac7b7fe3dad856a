"""Local backend: one quantized base in this process, with an adapter per row."""
