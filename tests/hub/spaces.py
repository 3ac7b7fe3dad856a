"""Spaces on the local Hub: creation, settings, status and build log.

Sources: the requests of huggingface_hub 2.4 (hf_api.py) and how it parses the responses (_space_api.py). A Space's
files are stored under "spaces/<name>", because a model may have the same name.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.hub import reading, writing
from tests.hub.reading import Reply, reply_json
from tests.hub.space_state import Space
from tests.hub.state import Account, Blob, Hub

_NAME = r"([^/]+/[^/]+)"
_OF_API = re.compile(rf"/api/spaces/{_NAME}(?:/(.+))?")
_LFS = re.compile(rf"/spaces/{_NAME}\.git/info/lfs/objects/batch")
_BUCKET = re.compile(rf"/api/buckets/{_NAME}")
_CREATE = "/api/repos/create"


def files(hub: Hub, name: str) -> dict[str, bytes]:
    """Return the Space's current files."""
    blobs = hub.history[_key(name)][-1].files
    return {path: hub.objects[blob.sha256] if blob.sha256 else blob.content for path, blob in blobs.items()}


def read(hub: Hub, account: Account | None, path: str) -> Reply | None:
    """Return the response to a GET about a Space; None for any other request."""
    match = _OF_API.fullmatch(path)
    if match is None:
        return None
    name, what = match[1], match[2] or ""
    space = hub.spaces.known.get(name)
    if space is None or space.hidden or not _may_see(hub, name, account):
        return reading.missing(account)
    if what == "runtime":
        return _runtime(hub, name, space)
    if what == "variables":
        return reply_json({key: {"value": value} for key, value in space.variables.items()})
    if what.startswith("logs/"):
        return _log(space)
    if what in ("", "revision/main"):
        return reading.info(hub, _key(name), hub.history[_key(name)][-1])
    return Reply(404, error="EntryNotFound", message="Entry not found")


def write(hub: Hub, account: Account | None, path: str, body: bytes) -> Reply | None:
    """Return the response to a POST or PUT about Spaces or buckets; None for any other request."""
    if path == _CREATE:
        values = json.loads(body)
        return _create(hub, account, values) if values.get("type") == "space" else None
    if match := _BUCKET.fullmatch(path):
        return writing.refusal(account, match[1]) or _bucket(hub, match[1], json.loads(body))
    match = _LFS.fullmatch(path) or _OF_API.fullmatch(path)
    if match is None:
        return None
    if match[1] not in hub.spaces.known:
        return reading.missing(account)
    refused = writing.refusal(account, match[1])
    return refused or _change(hub, match[1], "lfs" if _LFS.fullmatch(path) else match[2] or "", body)


def _change(hub: Hub, name: str, what: str, body: bytes) -> Reply:
    spaces, key = hub.spaces, _key(name)
    if what == "lfs":
        return writing.lfs_batch(hub, body)
    if what == "preupload/main":
        return writing.preupload(hub, key, body)
    if what == "commit/main":
        spaces.of(name).asked = 0
        return writing.commit(hub, key, body)
    space, values = spaces.of(name), json.loads(body)
    if what == "hardware":
        if values["flavor"] in spaces.unpaid:
            return Reply(402, message="Payment required")
        space.hardware = values["flavor"]
        return _runtime(hub, name, space)
    if what == "secrets":
        space.secrets[values["key"]] = values["value"]
    elif what == "variables":
        space.variables[values["key"]] = values["value"]
        return reply_json({key: {"value": value} for key, value in space.variables.items()})
    elif what == "volumes":
        space.volumes = values["volumes"]
    else:
        return Reply(404, error="EntryNotFound", message="Entry not found")
    return reply_json({})


def _create(hub: Hub, account: Account | None, values: dict[str, Any]) -> Reply:
    spaces = hub.spaces
    name = f"{values['organization'] or (account.name if account else '')}/{values['name']}"
    refused = writing.refusal(account, name)
    if refused:
        return refused
    if name in spaces.known:
        return reply_json({"error": "You already created this space repo", "url": f"{hub.url}/spaces/{name}"}, 409)
    if values.get("hardware", "cpu-basic") in spaces.unpaid:
        return Reply(402, message="Payment required")
    space = spaces.fresh()
    space.sdk, space.hardware = values["sdk"], values.get("hardware")
    space.secrets |= {pair["key"]: pair["value"] for pair in values.get("secrets", ())}
    space.variables |= {pair["key"]: pair["value"] for pair in values.get("variables", ())}
    space.volumes = list(values.get("volumes", ()))
    spaces.known[name] = space
    if values.get("visibility") == "private":
        hub.private.add(_key(name))
    first = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    card = b"---\ntitle: New\nsdk: gradio\n---\n"
    hub.append(_key(name), {".gitattributes": Blob(first, len(first)), "README.md": Blob(card, len(card))})
    return reply_json({"url": f"{hub.url}/spaces/{name}", "id": "0", "name": name})


def _bucket(hub: Hub, name: str, values: dict[str, Any]) -> Reply:
    buckets = hub.spaces.buckets
    if name in buckets:
        return reply_json({"error": "You already created this bucket", "url": f"{hub.url}/buckets/{name}"}, 409)
    buckets[name] = values.get("visibility") == "private"
    return reply_json({"url": f"{hub.url}/buckets/{name}"})


def _runtime(hub: Hub, name: str, space: Space) -> Reply:
    stage = space.stages[min(space.asked, len(space.stages) - 1)]
    space.asked += 1
    current = None if stage == "BUILDING" else space.hardware or "cpu-basic"
    values: dict[str, Any] = {
        "stage": stage,
        "hardware": {"current": current, "requested": space.hardware or "cpu-basic"},
        "gcTimeout": 172_800,
        "volumes": space.volumes,
    }
    if space.names_commit:
        values["sha"] = hub.history[_key(name)][-1].oid
    if space.error:
        values["errorMessage"] = space.error
    return reply_json(values)


def _log(space: Space) -> Reply:
    """Return server-sent events: one line for each stage that was requested so far."""
    lines = space.log[: space.asked]
    events = [{"data": line, "timestamp": "2026-01-01T00:00:00.000Z"} for line in lines]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Reply(200, text.encode(), {"Content-Type": "text/event-stream"})


def _may_see(hub: Hub, name: str, account: Account | None) -> bool:
    return _key(name) not in hub.private or (account is not None and account.may_write(name))


def _key(name: str) -> str:
    return f"spaces/{name}"
