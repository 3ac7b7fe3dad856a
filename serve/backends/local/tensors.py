"""An adapter's tensors out of its file: those that were checked, and no other."""

from __future__ import annotations

import math

import torch

from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, read_raw_tensors
from errors import AdapterError

# The names of safetensors; the store lets no other dtype pass.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_tensors(folder: AdapterFolder) -> dict[str, torch.Tensor]:
    """The tensors of a checked folder, by name, as they lie in its file. For any thread.

    The file is read once, and what was read must have the digest of what the store has checked. The tensors are views
    of that one piece of memory, so an adapter that keeps them takes what its file takes. AdapterError where the file
    is another one by now, or where a value is NaN or infinite.
    """
    body = read_raw_tensors(folder.path / WEIGHTS_NAME, folder.sha256, folder.name)
    tensors = {}
    for name, place in body.tensors.items():
        count = math.prod(place.shape)
        tensor = torch.frombuffer(body.data, dtype=_DTYPES[place.dtype], count=count, offset=place.begin)
        # Nothing makes a file put its tensors where the processor likes them.
        tensors[name] = (tensor if place.begin % tensor.itemsize == 0 else tensor.clone()).view(place.shape)
    for name, tensor in tensors.items():
        # Both are NaN where any value is; `isfinite` of each value takes ten times as long.
        if not all(math.isfinite(end) for end in torch.aminmax(tensor)):
            raise AdapterError(f"Adapter '{folder.name}' has NaN or infinite values in {name}: train it again.")
    return tensors
