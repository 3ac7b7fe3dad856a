"""How the Hub stand-in answers those who read: information, listings and files, as the real Hub does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.hub.state import Account, Blob, Commit, Hub


@dataclass(frozen=True)
class Reply:
    """One answer. With `cut` the line breaks after half of its content; a `stream` takes the place of content."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    cut: bool = False
    stream: Iterator[bytes] | None = None


def reply_json(values: Any, status: int = 200) -> Reply:
    """An answer in JSON."""
    return Reply(status, json.dumps(values).encode(), {"Content-Type": "application/json"})


def missing(account: Account | None) -> Reply:
    """The Hub does not tell whether a repository is private or not there, and blames a missing token for both."""
    return Reply(404 if account else 401, error="RepoNotFound", message="Repository not found")


def info(hub: Hub, name: str, commit: Commit) -> Reply:
    """What `model_info` asks, with sizes."""
    siblings = [{"rfilename": path, **_sizes(blob)} for path, blob in commit.files.items()]
    gated = "manual" if name in hub.gated else False
    private = name in hub.private
    values = {"id": name, "sha": commit.oid, "siblings": siblings, "tags": [], "private": private, "gated": gated}
    return reply_json(values)


def tree(commit: Commit) -> Reply:
    """What `list_repo_tree` asks."""
    entries = []
    for path, blob in commit.files.items():
        sizes = _sizes(blob)
        entry = {"type": "file", "path": path, "oid": sizes["blobId"], "size": blob.size}
        if "lfs" in sizes:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
        if blob.xet:
            entry["xetHash"] = blob.xet
        entries.append(entry)
    return reply_json(entries)


def file(hub: Hub, name: str, commit: Commit, path: str, head: bool) -> Reply:
    """One file, or with `head` what is known of it."""
    if path not in commit.files:
        return Reply(404, error="EntryNotFound", message="Entry not found")
    blob = commit.files[path]
    headers = {"ETag": f'"{blob.oid}"', "X-Repo-Commit": commit.oid}
    if blob.sha256:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    if blob.xet:
        route = f"{hub.url}/api/models/{name}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": blob.xet, "X-Xet-Refresh-Route": route}
    return Reply(200, blob.content, headers, cut=not head and hub.breaks("download"))


def _sizes(blob: Blob) -> dict[str, Any]:
    large = {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": 130}} if blob.sha256 else {}
    return {"size": blob.size, "blobId": blob.oid[:40], **large}
