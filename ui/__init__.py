"""The Gradio pages.

Each import of Gradio parses the source of its 80 components twice, to write stubs for editors beside them. That takes
a third of the time in which the pages are imported, and the stubs are part of the package already: `_StubsFinder`
leaves them out in this process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_MODULE, _FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


class _StubsFinder(MetaPathFinder):
    """Finds the one module of Gradio that writes stubs, once."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _NoStubsLoader(spec.loader)
        return spec


class _NoStubsLoader(Loader):
    """Loads that module without its function."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if hasattr(module, _FUNCTION):
            setattr(module, _FUNCTION, _write_no_stub)


def _write_no_stub(*_: object) -> None:
    """Stand in for the function that writes the stub of a component."""


if "gradio" not in sys.modules:
    sys.meta_path.insert(0, _StubsFinder())
