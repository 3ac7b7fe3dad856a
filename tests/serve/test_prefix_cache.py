"""Prefix cache: matching by adapter and tokens, common prefixes, and eviction."""

from __future__ import annotations

import pytest
import torch

from serve.backends.local.lora.adapter import AppliedAdapter, LoadedAdapter
from serve.backends.local.prefill import MIN_PREFIX_TOKENS, PrefixCache

PREFIX = tuple(range(100, 100 + 2 * MIN_PREFIX_TOKENS))


def _kv(tokens: int, num_virtual_tokens: int = 0) -> torch.Tensor:
    """Return keys and values that equal their position: 4 floats per position."""
    return (
        torch.arange(num_virtual_tokens + tokens, dtype=torch.float32)
        .view(1, 1, 1, -1, 1)
        .expand(1, 2, 2, -1, 1)
        .contiguous()
    )


def _prompt(*last_tokens: int) -> tuple[int, ...]:
    return (*PREFIX, *last_tokens)


def test_common_prefix_becomes_an_entry() -> None:
    cache = PrefixCache()
    first = _prompt(1, 2, 3)
    cache.insert(None, first, _kv(len(first)))
    assert cache.match_prefix(None, range(MIN_PREFIX_TOKENS + 5)) is None
    for last_tokens in range(7, 10):
        match = cache.match_prefix(None, _prompt(last_tokens))
        assert match is not None
        length, kv = match
        assert length == len(PREFIX)
        assert kv[0, 0, 0, :, 0].tolist() == list(range(length))
    assert len(cache._entries) == 2, "a repeated prefix is one entry"


def test_last_token_is_never_cached() -> None:
    cache = PrefixCache()
    cache.insert(None, PREFIX, _kv(len(PREFIX)))
    match = cache.match_prefix(None, PREFIX)
    assert match is not None
    assert match[0] == len(PREFIX) - 1


def test_entries_are_separate_by_adapter_and_scale() -> None:
    cache, first_adapter, second_adapter = PrefixCache(), LoadedAdapter(), LoadedAdapter()
    cache.insert(AppliedAdapter(first_adapter), _prompt(1), _kv(len(PREFIX) + 1))
    assert cache.match_prefix(None, _prompt(2)) is None
    assert cache.match_prefix(AppliedAdapter(second_adapter), _prompt(2)) is None
    assert cache.match_prefix(AppliedAdapter(first_adapter, 0.5), _prompt(2)) is None
    assert cache.match_prefix(AppliedAdapter(first_adapter), _prompt(2)) is not None
    cache.evict_adapter(first_adapter)
    assert cache.match_prefix(AppliedAdapter(first_adapter), _prompt(2)) is None
    assert cache.bytes == 0


def test_virtual_tokens_precede_the_tokens() -> None:
    cache, applied = PrefixCache(), AppliedAdapter(LoadedAdapter())
    cache.insert(applied, (), _kv(0, num_virtual_tokens=5))
    match = cache.match_prefix(applied, (1, 2, 3))
    assert match is not None
    assert match[0] == 0
    assert match[1].shape[3] == 5
    cache.insert(applied, _prompt(1), _kv(len(PREFIX) + 1, num_virtual_tokens=5))
    longer = cache.match_prefix(applied, _prompt(2))
    assert longer is not None
    assert (longer[0], longer[1].shape[3]) == (len(PREFIX), len(PREFIX) + 5)


def test_few_common_tokens_make_no_entry() -> None:
    cache = PrefixCache()
    cache.insert(None, PREFIX, _kv(len(PREFIX)))
    cache.insert(None, _prompt(1, 2, 3), _kv(len(PREFIX) + 3))
    match = cache.match_prefix(None, _prompt(1, 2, 9))
    assert match is not None
    assert match[0] == len(PREFIX)
    assert len(cache._entries) == 2


def test_memory_is_bounded_and_reused_prefixes_stay_longer() -> None:
    size = _kv(len(PREFIX) + 1).nbytes
    cache = PrefixCache(max_bytes=4 * size)
    cache.insert(None, PREFIX, _kv(len(PREFIX)))
    for other in range(50):
        other_prompt = tuple(range(1000 * other, 1000 * other + len(PREFIX) + 1))
        cache.insert(None, other_prompt, _kv(len(other_prompt)))
        assert cache.bytes <= 4 * size
        assert cache.match_prefix(None, _prompt(7)) is not None, "used every time"
    evicted = tuple(range(len(PREFIX) + 1))
    assert cache.match_prefix(None, evicted) is None
    cache.clear()
    assert cache.bytes == 0


@pytest.mark.parametrize("length", [MIN_PREFIX_TOKENS - 1, MIN_PREFIX_TOKENS])
def test_short_prompts_are_not_cached(length: int) -> None:
    cache = PrefixCache()
    cache.insert(None, range(length), _kv(length))
    assert len(cache._entries) == (length >= MIN_PREFIX_TOKENS)
