"""No name or text uses the vocabulary of the project's first version; the field's terms are used instead.

Identifiers, comments and strings of Python files are checked, and the text of scripts, styles and pages of docs.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Words that are not allowed in identifiers: an exception is an error, an index is a position, text for the user is a
# message, and so on. Plurals are not allowed either.
IDENTIFIER_WORDS = frozenset(
    [
        "desk",
        "dress",
        "dressing",
        "fault",
        "flight",
        "flying",
        "kept",
        "lane",
        "ledger",
        "lesson",
        "mailbox",
        "parcel",
        "place",
        "rack",
        "resident",
        "said",
        "sentence",
        "shelf",
        "shown",
        "speech",
        "told",
        "trunk",
        "voice",
        "wardrobe",
        "wear",
        "wish",
        "worn",
    ]
)
# Words that are not allowed in comments, strings and documents.
PROSE_WORDS = frozenset(
    [
        "desk",
        "dressed",
        "fault",
        "lanes",
        "ledger",
        "mailbox",
        "parcel",
        "rack",
        "residents",
        "shelf",
        "stems",
        "trunk",
        "wardrobe",
        "wears",
        "worn",
    ]
)
# Class names of the first version, without those that are terms of the field (Job, Call, Row).
OLD_CLASSES = frozenset(
    [
        "Answering",
        "BeamBatch",
        "CausalState",
        "CompositeVoice",
        "Decoding",
        "DressedModel",
        "EngineLimits",
        "EngineSource",
        "Flight",
        "FormDesk",
        "FusedState",
        "Given",
        "Growth",
        "Hole",
        "JobBoard",
        "Lanes",
        "Looker",
        "Mailbox",
        "Measure",
        "OpenBatch",
        "Out",
        "PeftArenaError",
        "Parcel",
        "Patience",
        "Planner",
        "Preparer",
        "Rack",
        "Residents",
        "Said",
        "Seq2SeqState",
        "Shelf",
        "Speech",
        "StepBatch",
        "Stems",
        "Stops",
        "TailLayer",
        "Telling",
        "Told",
        "Vocabulary",
        "Voice",
        "Voices",
        "Wardrobe",
        "Where",
        "Wish",
        "Worker",
        "Workspace",
        "Worn",
    ]
)
OLD_PRODUCT = re.compile(r"peft[ _-]?arena", re.IGNORECASE)

# path (or "*"), word, reason
ALLOWED: tuple[tuple[str, str, str], ...] = (
    ("common/files.py", "peft-arena", "the cache folder and the variables that are taken over"),
    ("tests/common/test_paths.py", "peft-arena", "tests what is taken over"),
    ("README.md", "peft-arena", "names the cache folder that is taken over"),
    ("ui/js/page.js", "peft-arena", "takes over what a browser stored"),
    ("ui/arena/view.py", "peft-arena", "the key with which browsers encrypted their stored fields"),
    ("ui/access/guard.py", "peft-arena", "the cookie of earlier visits"),
    ("tests/browser/test_browser_state.py", "peft-arena", "tests what is taken over in a browser"),
    ("jobs/hf_jobs/submit.py", "peft-arena", "finds jobs on the Hub that an earlier version sent"),
    ("tests/jobs/hf_jobs/test_run.py", "peft-arena", "tests that such jobs are found"),
    ("tests/test_vocabulary.py", "*", "lists the words"),
    ("*", "sentence_transformers", "the library"),
    ("*", "sentence", "Verdict.sentence, a key of verdict.json in the folders of jobs"),
    ("ui/arena/matches.py", "said", "Match.said, a key of the files of matches"),
    ("ui/arena/events.py", "said", "Match.said, a key of the files of matches"),
    ("tests/ui/arena/test_events.py", "said", "Match.said, a key of the files of matches"),
    ("ui/train/jobs_view.py", "said", "a key that the loss curve's script reads"),
    ("tests/evaluate/sandbox/attacks.py", "fault", "a segmentation fault"),
)
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def tracked(*patterns: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def is_allowed(path: str, word: str) -> bool:
    return any(
        (where in ("*", path)) and (allowed == "*" or allowed.casefold() == word.casefold())
        for where, allowed, _ in ALLOWED
    )


def singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and word[:-1] in IDENTIFIER_WORDS else word


def identifier_hits(path: str, name: str) -> Iterator[str]:
    if name in OLD_CLASSES and not is_allowed(path, name):
        yield name
    if is_allowed(path, name):
        return
    for part in _WORD.findall(without_in_flight(name)):
        if singular(part.casefold()) in IDENTIFIER_WORDS and not is_allowed(path, part):
            yield name


def without_in_flight(name: str) -> str:
    """Drop "in flight", which serving engines use for requests and loads."""
    return re.sub(r"in_?flight", "", name, flags=re.IGNORECASE)


def prose_hits(path: str, text: str) -> Iterator[str]:
    for word in re.findall(r"[A-Za-z][A-Za-z-]*", text):
        if word.casefold() in PROSE_WORDS and not is_allowed(path, word):
            yield word
    for match in OLD_PRODUCT.finditer(text):
        if not is_allowed(path, "peft-arena"):
            yield match.group()


def python_hits(path: str) -> Iterator[str]:
    text = (ROOT / path).read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            hits = identifier_hits(path, token.string)
        elif token.type in (tokenize.COMMENT, tokenize.STRING):
            hits = prose_hits(path, token.string)
        else:
            continue
        for hit in hits:
            yield f"{path}:{token.start[0]}: {hit}"


def text_hits(path: str) -> Iterator[str]:
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
        for hit in prose_hits(path, line):
            yield f"{path}:{number}: {hit}"


def report(hits: list[str]) -> str:
    return f"{len(hits)} uses of the old vocabulary:\n" + "\n".join(hits[:60])


def test_no_python_file_uses_the_old_vocabulary() -> None:
    hits = [hit for path in tracked("*.py") for hit in python_hits(path)]
    assert not hits, report(hits)


def test_no_page_script_or_setting_uses_the_old_vocabulary() -> None:
    files = tracked("*.md", "*.js", "*.css", "*.toml", "*.yaml", "*.jinja", "Makefile", ".ci/run", "requirements*.txt")
    hits = [hit for path in files for hit in text_hits(path)]
    assert not hits, report(hits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fault", 1), ("_faults", 1), ("last_place", 1), ("PlaceError", 1), ("Wardrobe", 2), ("default", 0),
        ("placeholder", 0), ("replace", 0), ("workplace", 0), ("racket", 0), ("sentence_transformers", 0),
    ],
)  # fmt: skip
def test_identifiers_are_checked_word_by_word(name: str, expected: int) -> None:
    assert len(list(identifier_hits("some/file.py", name))) == expected


def test_every_entry_of_the_allow_list_is_used() -> None:
    """Entries of the allow-list that are no longer needed must be removed."""

    unused = []
    for where, word, _ in ALLOWED:
        paths = [path for path in ([where] if where != "*" else tracked("*.py")) if path != "tests/test_vocabulary.py"]
        text = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in paths).casefold()
        if word != "*" and word not in text and not (word == "peft-arena" and OLD_PRODUCT.search(text)):
            unused.append((where, word))
    assert not unused
