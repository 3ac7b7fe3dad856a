"""Reads the prompts of lines that join: piece by piece, several short ones at once, nothing that is known again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from serve.backends.local.dress import Dressing, Span
from serve.backends.local.fused import FusedModel
from serve.backends.local.prefix import Prefix, Virtual
from serve.backends.local.prefixes import LEAST, Prefixes, shared_tokens
from serve.backends.local.reading import Reading
from serve.backends.local.state import Line
from serve.backends.local.worn import Worn

# Places that are read at once: lines that speak wait so long for their next token, and so does a cancel.
PIECE = 512

Dressed = Callable[[Sequence[Span]], Dressing | None]


class Reader:
    """The prompts of some lines, in their order. `dressed` makes ready what the places of a forward wear."""

    def __init__(self, model: FusedModel, prefixes: Prefixes, dressed: Dressed, lines: Sequence[Line]) -> None:
        self._model = model
        self._prefixes = prefixes
        self._dressed = dressed
        self._lines = lines
        self._begun: list[Reading] = []
        self._logits: list[torch.Tensor | None] = [None] * len(lines)

    @property
    def readings(self) -> list[Reading]:
        """What was read, line by line."""
        return self._begun

    @property
    def logits(self) -> torch.Tensor:
        """The logits of each line's first new token, (lines, vocabulary)."""
        return torch.stack([row for row in self._logits if row is not None])

    def read_piece(self) -> bool:
        """Reads the next piece; whether all has been read."""
        pieces = self._piece()
        spans: list[Span] = []
        tokens: list[int] = []
        places: list[int] = []
        parts: list[tuple[slice, Reading]] = []
        lasts: dict[int, int] = {}
        for line, taken in pieces:
            reading, asked = self._begun[line], self._lines[line]
            rows = slice(len(tokens), len(tokens) + len(taken))
            # The prompt's tokens that were not known are its last ones.
            skipped = len(asked.tokens) - reading.count
            tokens += asked.tokens[skipped + reading.done : skipped + reading.done + len(taken)]
            places += taken
            parts.append((rows, reading))
            if asked.worn is not None:
                spans.append((rows, asked.worn))
            if len(taken) == reading.left:
                lasts[line] = rows.stop - 1
        embedded = self._model.embed(torch.tensor(tokens, device=self._model.device))
        logits = self._forward(embedded, places, parts, self._dressed(spans), list(lasts.values()))
        for (line, taken), (_, reading) in zip(pieces, parts, strict=True):
            reading.read(taken)
            if not reading.left:
                self._prefixes.keep(self._lines[line].worn, self._lines[line].tokens, reading.known)
        for line, row in zip(lasts, logits, strict=True):
            self._logits[line] = row
        return all(row is not None for row in self._logits)

    def _piece(self) -> list[tuple[int, range]]:
        """Which places of which lines to read now."""
        room = PIECE
        piece: list[tuple[int, range]] = []
        for line, reading in enumerate(self._begun):
            if reading.left and room:
                piece.append((line, reading.take(room)))
                room -= len(piece[-1][1])
        while len(self._begun) < len(self._lines) and room:
            line = len(self._begun)
            known = self._known(self._lines[line])
            if self._waits(line, 0 if known is None else known[0], [other for other, _ in piece]):
                break
            skipped, before = known or (0, None)
            self._prefixes.hits += skipped > 0
            reading = Reading(self._model, len(self._lines[line].tokens) - skipped, before)
            self._begun.append(reading)
            piece.append((line, reading.take(room)))
            room -= len(piece[-1][1])
        return piece

    def _waits(self, line: int, known: int, others: Sequence[int]) -> bool:
        """Whether one of the lines in this piece reads what this one could then skip."""
        mine = self._lines[line]
        return any(
            Prefixes.same(mine.worn, theirs.worn) and shared_tokens(theirs.tokens, mine.tokens) - known >= LEAST
            for theirs in (self._lines[other] for other in others)
        )

    def _known(self, line: Line) -> tuple[int, torch.Tensor] | None:
        """How many of the line's tokens need not be read, and the keys and values of all before the rest."""
        found = self._prefixes.find(line.worn, line.tokens)
        if found is None and line.worn is not None and line.worn.adapter.ahead is not None:
            known = self._virtual(line.worn)
            self._prefixes.keep(line.worn, (), known)
            return 0, known
        return found

    def _virtual(self, worn: Worn) -> torch.Tensor:
        """Keys and values of what the adapter puts before a prompt; virtual tokens are read by the bare base."""
        ahead = worn.adapter.ahead
        if isinstance(ahead, Prefix):
            return torch.stack([torch.stack(pair) for pair in zip(ahead.keys, ahead.values, strict=True)])
        if not isinstance(ahead, Virtual):
            raise TypeError(f"Nothing stands before the prompts of {worn}.")
        reading = Reading(self._model, len(ahead.embeddings))
        places = reading.take(reading.count)
        rows = slice(0, reading.count)
        self._forward(ahead.embeddings, list(places), [(rows, reading)], None, [reading.count - 1])
        return reading.known

    def _forward(
        self,
        embedded: torch.Tensor,
        places: list[int],
        parts: Sequence[tuple[slice, Reading]],
        dress: Dressing | None,
        lasts: list[int],
    ) -> torch.Tensor:
        """Logits of the rows `lasts`."""

        def attend(layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            seen = torch.empty_like(query)
            for rows, reading in parts:
                seen[rows] = reading.attend(layer, query[rows], keys[rows], values[rows])
            return seen

        device = self._model.device
        kept = torch.tensor(lasts, device=device, dtype=torch.long)
        return self._model.forward(embedded, torch.tensor(places, device=device), attend, dress, kept)
