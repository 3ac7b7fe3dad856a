"""Backends, which generate text: local, remote and ZeroGPU. Only these modules import torch and transformers."""
