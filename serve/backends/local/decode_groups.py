"""Lines that speak, in groups: those of a group attend together, padded on the left to end at the same column.

A group costs every step a fixed time, and padding costs time by the column: lines stand in one group while padding is
the smaller of the two. A group keeps spare lines and columns, so that a line joins or leaves without the others being
copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve.backends.local.fused_llama import AttentionFn, FusedLlama

# Columns and lines that a group has beyond what it needs.
SPARE_COLUMNS = 32
_SPARE_SEQUENCES = 4
# One more group costs a step about as much as this many padded columns of one line: two products and a softmax a layer
# take their time on a CPU before they have done anything, and a column must be read.
MAX_PADDING_TOKENS = 1500
# Up to so many columns of a single line torch's fused attention is quicker on a CPU than two products.
_MAX_SDPA_COLUMNS = 256
_attention = torch.nn.functional.scaled_dot_product_attention


class DecodeGroup:
    """Keys and values of some lines, (layers, 2, lines, key/value heads, columns, head size), with room to grow."""

    def __init__(self, model: FusedLlama, kv: Sequence[torch.Tensor]) -> None:
        """`known[i]` are the keys and values of all that line i has read, as a `PrefillSequence` has them; they are copied."""
        layers, heads, size = model.kv_shape
        self._scale = model.scale
        self._mask_value = torch.finfo(model.dtype).min
        self.lengths: list[int] = []
        self.columns = max(each.shape[3] for each in kv)
        shape = (layers, 2, len(kv) + _SPARE_SEQUENCES, heads, self.columns + SPARE_COLUMNS, size)
        self._kv = torch.zeros(shape, device=model.device, dtype=model.dtype)
        # Added to scores: what hides padding and the columns to come.
        self._bias = torch.full((shape[2], 1, 1, shape[4]), self._mask_value, device=model.device, dtype=model.dtype)
        self._layer_views = list(self._kv.unbind(0))
        for each in kv:
            self.add_sequence(each)

    @property
    def padding(self) -> int:
        """How many columns of padding its lines have."""
        return len(self.lengths) * self.columns - sum(self.lengths)

    def fits(self, kv: Sequence[torch.Tensor]) -> bool:
        """Whether lines that have read this can join without the others being copied."""
        longest = max(each.shape[3] for each in kv)
        return longest <= self.columns and len(self.lengths) + len(kv) <= self._kv.shape[2]

    def add_sequence(self, kv: torch.Tensor) -> None:
        """Takes one more line in; it must fit."""
        line, length = len(self.lengths), kv.shape[3]
        blank = self.columns - length
        self._kv[:, :, line, :, blank : self.columns] = kv
        self._bias[line] = self._mask_value
        self._bias[line, :, :, blank : self.columns] = 0
        self.lengths.append(length)

    def remove_sequence(self, index: int) -> None:
        """Drops a line; the last one takes its place."""
        last = len(self.lengths) - 1
        if index < last:
            self._kv[:, :, index, :, : self.columns] = self._kv[:, :, last, :, : self.columns]
            self._bias[index] = self._bias[last]
            self.lengths[index] = self.lengths[last]
        self.lengths.pop()

    def kv(self, index: int) -> torch.Tensor:
        """Keys and values of one line, as a `PrefillSequence` has them; a view."""
        return self._kv[:, :, index, :, self.columns - self.lengths[index] : self.columns]

    def begin_step(self) -> None:
        """Makes room for the column that the next forward writes."""
        if self.columns == self._kv.shape[4]:
            shape = self._kv.shape
            self._kv = torch.cat([self._kv, self._kv.new_zeros((*shape[:4], SPARE_COLUMNS, shape[5]))], 4)
            self._bias = torch.nn.functional.pad(self._bias, (0, SPARE_COLUMNS), value=self._mask_value)
            self._layer_views = list(self._kv.unbind(0))
        self._bias[..., self.columns] = 0
        self.columns += 1
        self.lengths = [length + 1 for length in self.lengths]

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What each line's one place sees, (lines, heads, head size)."""
        lines, heads, size = query.shape
        mine, at = self._layer_views[layer], self.columns
        mine[0, :lines, :, at - 1] = keys
        mine[1, :lines, :, at - 1] = values
        groups = keys.shape[1]
        query = query.reshape(lines, groups, heads // groups, size)
        keys, values, bias = mine[0, :lines], mine[1, :lines], self._bias[:lines]
        if query.device.type != "cpu" or (lines == 1 and at <= _MAX_SDPA_COLUMNS):
            seen = _attention(query, keys[:, :, :at], values[:, :, :at], bias[..., :at], scale=self._scale)
        else:
            seen = self._matmul_attention(query, keys, values, bias)
        return seen.reshape(lines, heads, size)

    def _matmul_attention(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attention as two plain products: for so few queries torch 2.13's fused kernels are slower on a CPU.

        Over all columns that there is room for: oneDNN copies keys and values that do not lie together.
        """
        scores = torch.bmm((query * self._scale).flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
        scores = scores.view(*query.shape[:3], -1).add_(bias)
        shares = scores.softmax(-1)  # in float32 inside
        return torch.bmm(shares.flatten(0, 1), values.flatten(0, 1)).view(query.shape)


# What a line has read, and its number.
_NewSequence = tuple[torch.Tensor, int]


class DecodeBatch:
    """All lines that speak, under the numbers 0, 1, ... that callers know them by."""

    def __init__(self, model: FusedLlama) -> None:
        self._model = model
        self._groups: list[DecodeGroup] = []
        # For each group the numbers of its lines.
        self._members: list[list[int]] = []
        self.order: torch.Tensor | None = None
        self._positions = torch.empty(0)

    def __len__(self) -> int:
        return sum(map(len, self._members))

    def add_sequences(self, kv: Sequence[torch.Tensor]) -> None:
        """Takes lines in as the last ones; their keys and values are copied."""
        number = len(self)
        self._insert([(each, number + place) for place, each in enumerate(kv)])
        self._update_order()

    def reorder(self, indices: Sequence[int]) -> None:
        """New line i is old line `lines[i]`."""
        new: dict[int, list[int]] = {}
        for number, old in enumerate(indices):
            new.setdefault(old, []).append(number)
        repeated: list[_NewSequence] = []
        for group, members in zip(self._groups, self._members, strict=True):
            for line in reversed(range(len(members))):
                numbers = new.get(members[line], [])
                if not numbers:
                    group.remove_sequence(line)
                    members[line] = members[-1]
                    members.pop()
                else:
                    members[line] = numbers[0]
                    repeated += [(group.kv(line).clone(), number) for number in numbers[1:]]
        self._insert(repeated + self._drop_padded_groups())
        self._update_order()

    def begin_step(self) -> tuple[torch.Tensor, AttentionFn]:
        """The places that the lines, in `order`, speak at, and how they attend, for one forward."""
        places = self._positions
        self._positions = places + 1
        for group in self._groups:
            group.begin_step()
        if len(self._groups) == 1:
            return places, self._groups[0].attend
        ends = torch.tensor([len(members) for members in self._members]).cumsum(0).tolist()
        rows = [slice(end - len(members), end) for end, members in zip(ends, self._members, strict=True)]

        def attend(layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            return torch.cat(
                [
                    group.attend(layer, query[mine], keys[mine], values[mine])
                    for mine, group in zip(rows, self._groups, strict=True)
                ]
            )

        return places, attend

    def _drop_padded_groups(self) -> list[_NewSequence]:
        """Drops groups without lines, and those whose longest lines have left much padding behind: their lines."""
        groups = list(zip(self._groups, self._members, strict=True))
        kept = [(group, members) for group, members in groups if members and group.padding <= MAX_PADDING_TOKENS]
        self._groups, self._members = [group for group, _ in kept], [members for _, members in kept]
        return [
            (group.kv(line), number)
            for group, members in groups
            if members and group.padding > MAX_PADDING_TOKENS
            for line, number in enumerate(members)
        ]

    def _insert(self, new_sequences: Sequence[_NewSequence]) -> None:
        """Puts lines where they cost least: those of similar length together, in a group that is there or a new one."""
        ordered = sorted(new_sequences, key=lambda arrival: -arrival[0].shape[3])
        lengths = [known.shape[3] for known, _ in ordered]
        for cluster in _clusters(lengths):
            known, numbers = zip(*ordered[cluster], strict=True)
            costs = [_padding([*group.lengths, *lengths[cluster]]) - _padding(group.lengths) for group in self._groups]
            best = min(range(len(costs)), key=costs.__getitem__, default=None)
            if best is None or costs[best] > MAX_PADDING_TOKENS:
                self._groups.append(DecodeGroup(self._model, known))
                self._members.append(list(numbers))
                continue
            group = self._groups[best]
            if group.fits(known):
                for each in known:
                    group.add_sequence(each)
            else:
                self._groups[best] = DecodeGroup(self._model, [*map(group.kv, range(len(group.lengths))), *known])
            self._members[best] += numbers

    def _update_order(self) -> None:
        """Notes which line stands where."""
        device = self._model.device
        order = [number for members in self._members for number in members]
        self.order = None if order == list(range(len(order))) else torch.tensor(order, device=device)
        self._positions = torch.tensor([n for group in self._groups for n in group.lengths], device=device)


def _padding(lengths: Sequence[int]) -> int:
    """How many columns of padding lines of these lengths have in one group."""
    return len(lengths) * max(lengths, default=0) - sum(lengths)


def _clusters(lengths: Sequence[int]) -> list[slice]:
    """Where to cut a falling sequence of lengths, so that padding and groups cost least together."""
    cheapest: list[tuple[int, int]] = [(0, 0)]  # of the first n lengths: the cost, and where the last group begins
    for end in range(1, len(lengths) + 1):
        cheapest.append(
            min((cheapest[begin][0] + _padding(lengths[begin:end]) + MAX_PADDING_TOKENS, begin) for begin in range(end))
        )
    cuts = []
    end = len(lengths)
    while end:
        begin = cheapest[end][1]
        cuts.append(slice(begin, end))
        end = begin
    return cuts[::-1]
