"""Formatting of sizes and durations."""

from __future__ import annotations

import pytest

from common.format import format_bytes, format_clock, format_duration


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (93_000_000, "93 MB"),
        (67_108_864, "67.1 MB"),
        (3_614_000_000, "3.61 GB"),
        (20_000_000_000_000, "20000 GB"),
    ],
)
def test_sizes_have_three_significant_digits(size: int, expected: str) -> None:
    assert format_bytes(size) == expected


def test_sizes_can_be_in_units_of_1024() -> None:
    assert [format_bytes(size, 1024) for size in (900, 64 << 10, 1 << 20, 512 << 20)] == [
        "900 bytes",
        "64 kB",
        "1 MB",
        "512 MB",
    ]


@pytest.mark.parametrize(
    ("seconds", "duration", "clock"),
    [
        (0.4, "0 s", "0:00"),
        (59.6, "1 min 00 s", "1:00"),
        (187, "3 min 07 s", "3:07"),
        (7500, "2 h 05 min", "2:05:00"),
        (100_000, "1 d 03 h", "27:46:40"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, duration: str, clock: str) -> None:
    assert format_duration(seconds) == duration
    assert format_clock(seconds) == clock
