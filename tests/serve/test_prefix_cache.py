"""What was read once and is not read again: whose it is, what is kept, and what goes first."""

from __future__ import annotations

import pytest
import torch

from serve.backends.local.lora.registry import AppliedAdapter, LoadedAdapter
from serve.backends.local.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache

BEGINNING = tuple(range(100, 100 + 2 * MIN_PREFIX_TOKENS))


def _known(tokens: int, ahead: int = 0) -> torch.Tensor:
    """Keys and values whose place can be told: 4 floats a place."""
    return torch.arange(ahead + tokens, dtype=torch.float32).view(1, 1, 1, -1, 1).expand(1, 2, 2, -1, 1).contiguous()


def _prompt(*own: int) -> tuple[int, ...]:
    return (*BEGINNING, *own)


def test_common_prefix_becomes_an_entry() -> None:
    prefixes = PrefixCache()
    first = _prompt(1, 2, 3)
    prefixes.insert(None, first, _known(len(first)))
    assert prefixes.match_prefix(None, range(MIN_PREFIX_TOKENS + 5)) is None
    for own in range(7, 10):
        found = prefixes.match_prefix(None, _prompt(own))
        assert found is not None
        length, known = found
        assert length == len(BEGINNING)
        assert known[0, 0, 0, :, 0].tolist() == list(range(length))
    assert len(prefixes._entries) == 2, "the beginning is an entry once, however often it comes"


def test_last_token_is_never_cached() -> None:
    prefixes = PrefixCache()
    prefixes.insert(None, BEGINNING, _known(len(BEGINNING)))
    found = prefixes.match_prefix(None, BEGINNING)
    assert found is not None
    assert found[0] == len(BEGINNING) - 1


def test_entries_are_separate_by_adapter_and_scale() -> None:
    prefixes, one, two = PrefixCache(), LoadedAdapter(), LoadedAdapter()
    prefixes.insert(AppliedAdapter(one), _prompt(1), _known(len(BEGINNING) + 1))
    assert prefixes.match_prefix(None, _prompt(2)) is None
    assert prefixes.match_prefix(AppliedAdapter(two), _prompt(2)) is None
    assert prefixes.match_prefix(AppliedAdapter(one, 0.5), _prompt(2)) is None
    assert prefixes.match_prefix(AppliedAdapter(one), _prompt(2)) is not None
    prefixes.evict_adapter(one)
    assert prefixes.match_prefix(AppliedAdapter(one), _prompt(2)) is None
    assert prefixes.bytes == 0


def test_virtual_tokens_precede_the_tokens() -> None:
    prefixes, worn = PrefixCache(), AppliedAdapter(LoadedAdapter())
    prefixes.insert(worn, (), _known(0, ahead=5))
    found = prefixes.match_prefix(worn, (1, 2, 3))
    assert found is not None
    assert found[0] == 0
    assert found[1].shape[3] == 5
    prefixes.insert(worn, _prompt(1), _known(len(BEGINNING) + 1, ahead=5))
    longer = prefixes.match_prefix(worn, _prompt(2))
    assert longer is not None
    assert (longer[0], longer[1].shape[3]) == (len(BEGINNING), len(BEGINNING) + 5)


def test_few_common_tokens_make_no_entry() -> None:
    prefixes = PrefixCache()
    prefixes.insert(None, BEGINNING, _known(len(BEGINNING)))
    prefixes.insert(None, _prompt(1, 2, 3), _known(len(BEGINNING) + 3))
    found = prefixes.match_prefix(None, _prompt(1, 2, 9))
    assert found is not None
    assert found[0] == len(BEGINNING)
    assert len(prefixes._entries) == 2


def test_memory_is_bounded_and_reused_prefixes_stay_longer() -> None:
    size = _known(len(BEGINNING) + 1).nbytes
    prefixes = PrefixCache(max_bytes=4 * size)
    prefixes.insert(None, BEGINNING, _known(len(BEGINNING)))
    for other in range(50):
        alone = tuple(range(1000 * other, 1000 * other + len(BEGINNING) + 1))
        prefixes.insert(None, alone, _known(len(alone)))
        assert prefixes.bytes <= 4 * size
        assert prefixes.match_prefix(None, _prompt(7)) is not None, "used every time"
    gone = tuple(range(len(BEGINNING) + 1))
    assert prefixes.match_prefix(None, gone) is None
    prefixes.clear()
    assert prefixes.bytes == 0


@pytest.mark.parametrize("length", [MIN_PREFIX_TOKENS - 1, MIN_PREFIX_TOKENS])
def test_short_prompts_are_not_cached(length: int) -> None:
    prefixes = PrefixCache()
    prefixes.insert(None, range(length), _known(length))
    assert len(prefixes._entries) == (length >= MIN_PREFIX_TOKENS)
