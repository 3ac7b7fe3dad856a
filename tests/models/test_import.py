"""Import of bitsandbytes: torch's compiler stays out where no kernel of this machine uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CHECK = """
import sys, torch
from models.loader import import_bitsandbytes
compile_function = torch.compile
import_bitsandbytes()
print("bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules, torch.compile is compile_function)
"""


@pytest.mark.slow
def test_bitsandbytes_is_imported_without_the_compiler() -> None:
    torch = pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(torch.cuda.is_available()), "True"]
