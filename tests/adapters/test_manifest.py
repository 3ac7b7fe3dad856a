"""The manifest: writing, reading, and error messages that quote a limited part of an invalid one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adapters.manifest import Manifest
from errors import AdapterError
from tests.adapters.folders import MANIFEST


def test_written_manifest_is_read_back(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, weights_digest="sha256:0011223344556677", config={"seed": 1})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


def test_manifest_without_the_digest_of_its_weights_is_read(tmp_path: Path) -> None:
    values = asdict(MANIFEST)
    del values["weights_digest"]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    assert Manifest.read(tmp_path) == MANIFEST


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "has version 2, this program reads version 1; update Prompt or Tune"),
        ({"version": "\x1b[31m" + "x" * 10_000}, "…, this program reads version 1"),
        ({"\x1b[31mextra": 1}, r"has an unknown field '\x1b[31mextra'; update Prompt or Tune"),
        ({"e" * 100_000: 1}, "e…; update Prompt or Tune"),
        ({"log": "abc"}, "'log' in manifest.json is not a list"),
        ({"scores": {"metric": 1}}, "'scores' in manifest.json is not a list"),
    ],
)
def test_unexpected_values_are_quoted_within_limits(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**asdict(MANIFEST), **change}))
    assert expected in _refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be read (Expecting value"),
        ("{", "cannot be read"),
        ("[]", "must be a JSON object"),
        ("{}", "has version None"),
        ('{"version": 1}', "has no field 'name'"),
        ("[" * 100_000, "is nested too deeply"),
        ("1" * 5000, "cannot be read"),
        ('{"version": ' + "1" * 5000 + "}", "cannot be read"),
    ],
)
def test_invalid_manifest_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert expected in _refused(tmp_path)


def test_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"name": "\xff\x1b[31m"}')
    assert "cannot be read ('utf-8' codec can't decode" in _refused(tmp_path)


def _refused(folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        Manifest.read(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message
