"""An adapter is added: its checks tick off one by one, and a refusal says which one failed and why."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from adapters import archive, hub
from adapters.checks import MAX_FOLDER_BYTES
from adapters.steps import Step, Steps
from errors import PeftArenaError
from ui.adapters.shelf import Shelf
from ui.limits import check_upload

DEFECT = "Something went wrong on our side, and the log says what. Nothing was added."
_MARKS = {
    "passed": '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 8.5l3.2 3.2L13 4.8"/></svg>',
    "failed": '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4 4l8 8M12 4l-8 8"/></svg>',
    "going": '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="5"/></svg>',
    "waits": '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="1.5"/></svg>',
}
_SAID = {"passed": "passed", "failed": "refused", "going": "being checked", "waits": "not checked"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adding:
    """How far it is. `names` are all checks, `passed` the first so many of them; `made` is there at a good end."""

    names: tuple[str, ...]
    passed: int = 0
    line: str = ""
    fault: str = ""
    made: Path | None = None

    @property
    def over(self) -> bool:
        """Whether it has come to its end, good or bad."""
        return bool(self.fault) or self.made is not None


Work = Callable[[Steps, Callable[[str], None]], Path]


def from_zip(shelf: Shelf, file: Path, name: str, max_bytes: int) -> Iterator[Adding]:
    """Adds the adapter in the zip `file`, which is deleted; `name` '' for its own."""

    def work(steps: Steps, line: Callable[[str], None]) -> Path:
        try:
            check_upload(file.stat().st_size, max_bytes, f"'{file.name}'")
            line(f"Checking '{file.name}' ...")
            most = max_bytes if max_bytes > 0 else MAX_FOLDER_BYTES
            return archive.unpack(
                file, shelf.own_root, steps, name=name.strip() or None, max_bytes=most, reserved=_names(shelf)
            )
        finally:
            file.unlink(missing_ok=True)

    return _told(archive.STEPS, work)


def from_hub(shelf: Shelf, spec: str, name: str, token: str | None) -> Iterator[Adding]:
    """Adds `user/name@revision`, under `name` or, where that is '', its own."""

    def work(steps: Steps, line: Callable[[str], None]) -> Path:
        return hub.pull(
            spec.strip(),
            shelf.own_root,
            line,
            name=name.strip() or None,
            token=token,
            steps=steps,
            reserved=_names(shelf),
        )

    return _told(hub.STEPS, work)


def checks_html(adding: Adding) -> str:
    """The checks as a list; each says its state in words as well."""
    items = []
    for place, name in enumerate(adding.names):
        if place < adding.passed:
            state = "passed"
        elif place > adding.passed or adding.made is not None:
            state = "waits"
        else:
            state = "failed" if adding.fault else "going"
        items.append(
            f'<li class="{state}">{_MARKS[state]}<span>{escape(name)}</span>'
            f'<span class="pa-sr">: {_SAID[state]}</span></li>'
        )
    return f'<ol class="checks">{"".join(items)}</ol>'


def _names(shelf: Shelf) -> Sequence[str]:
    """The names that are taken: one of the library's must not be hidden by what a stranger adds."""
    return shelf.store.names()


@dataclass
class _Told:
    """Takes what the work reports, from its thread."""

    heard: queue.SimpleQueue[Step | str | Path | Exception] = field(default_factory=queue.SimpleQueue)

    def run(self, work: Work) -> None:
        try:
            self.heard.put(work(self.heard.put, self.heard.put))
        except Exception as fault:  # noqa: BLE001 - whoever waits must hear of any end
            self.heard.put(fault)


def _told(names: Sequence[str], work: Work) -> Iterator[Adding]:
    """The work in a thread of its own: whoever closes the page does not leave half of it behind."""
    told, now = _Told(), Adding(tuple(names))
    threading.Thread(target=told.run, args=(work,), name="add-adapter", daemon=True).start()
    yield now
    while not now.over:
        heard = told.heard.get()
        if isinstance(heard, Step):
            now = replace(now, passed=now.passed + heard.ok)
        elif isinstance(heard, str):
            now = replace(now, line=heard)
        elif isinstance(heard, Path):
            now = replace(now, made=heard)
        else:
            now = replace(now, fault=_sentence(heard))
        yield now


def _sentence(fault: Exception) -> str:
    if isinstance(fault, PeftArenaError):
        return str(fault)
    _log.error("An adapter could not be added.", exc_info=fault)
    return DEFECT
