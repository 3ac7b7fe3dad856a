"""Read requests on the local Hub: repository information, listings and files, as on the real Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.hub.state import Account, Blob, Commit, Hub


@dataclass(frozen=True)
class Reply:
    """An HTTP response. With `cut` the connection breaks after half of the content; `stream` replaces the content."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    cut: bool = False
    stream: Iterator[bytes] | None = None


def reply_json(values: Any, status: int = 200) -> Reply:
    """Return a response in JSON."""
    return Reply(status, json.dumps(values).encode(), {"Content-Type": "application/json"})


def missing(account: Account | None) -> Reply:
    """Return the response for a private or missing repository, which are the same on the Hub."""
    return Reply(404 if account else 401, error="RepoNotFound", message="Repository not found")


def info(hub: Hub, name: str, commit: Commit) -> Reply:
    """Return the response to `model_info`, with file sizes."""
    siblings = [{"rfilename": path, **_sizes(blob)} for path, blob in commit.files.items()]
    gated = "manual" if name in hub.gated else False
    private = name in hub.private
    values = {"id": name, "sha": commit.oid, "siblings": siblings, "tags": [], "private": private, "gated": gated}
    return reply_json(values)


def tree(commit: Commit) -> Reply:
    """Return the response to `list_repo_tree`."""
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
    """Return a file, or with `head` only its headers."""
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
