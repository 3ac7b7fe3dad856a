"""Write requests on the local Hub: accounts, new repositories, uploads and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import yaml

from tests.hub import xet
from tests.hub.reading import Reply, reply_json
from tests.hub.state import LARGE, Account, Blob, Hub

_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


def whoami(account: Account | None) -> Reply:
    """Return the owner and the rights of a token."""
    if account is None:
        return Reply(401, error="", message="Invalid credentials in Authorization header")
    scoped = [{"entity": {"type": "user", "name": name}, "permissions": ["repo.write"]} for name in account.scopes]
    token: dict[str, Any] = {"displayName": "test", "role": account.role}
    if account.role == "fineGrained":
        token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
    orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in account.orgs.items()]
    auth = {"type": "access_token", "accessToken": token}
    return reply_json({"type": "user", "id": "0", "name": account.name, "orgs": orgs, "auth": auth})


def refusal(account: Account | None, repo: str) -> Reply | None:
    """Return the error response for an account without write access; None for one with write access."""
    if account is None:
        return Reply(401, message="Invalid username or password.")
    if not account.may_write(repo):
        return Reply(403, message="You don't have the required permissions to perform this operation")
    return None


def create(hub: Hub, account: Account | None, body: bytes) -> Reply:
    """Create a repository with its first file."""
    values = json.loads(body)
    kind = "datasets/" if values.get("type") == "dataset" else ""
    name = f"{kind}{values['organization'] or (account.name if account else '')}/{values['name']}"
    refused = refusal(account, name)
    if refused:
        return refused
    if hub.knows(name):
        return reply_json({"error": "You already created this repo", "url": f"{hub.url}/{name}"}, 409)
    if values.get("visibility") == "private":
        hub.private.add(name)
    first = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    hub.append(name, {".gitattributes": Blob(first, len(first))})
    return reply_json({"url": f"{hub.url}/{name}", "id": "0", "name": name})


def validate(body: bytes) -> Reply:
    """Check the fields of a card's front matter that the project's cards have."""
    front = _FRONT.match(json.loads(body)["content"])
    try:
        card = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        return reply_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    found = card.get("base_model", [])
    bases = found if isinstance(found, list) else [found]
    invalid = [base for base in bases if not _MODEL.fullmatch(str(base))]
    errors = [{"message": f'"base_model" with value "{base}" is not valid'} for base in invalid]
    return reply_json({"errors": errors, "warnings": []}, 400 if errors else 200)


def preupload(hub: Hub, name: str, body: bytes) -> Reply:
    """Return which files are large, and the hashes of existing files of the same names."""
    existing = hub.history[name][-1].files
    files = [
        {
            "path": entry["path"],
            "uploadMode": "lfs" if entry["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": existing[entry["path"]].oid if entry["path"] in existing else None,
        }
        for entry in json.loads(body)["files"]
    ]
    return reply_json({"files": files})


def lfs_batch(hub: Hub, body: bytes) -> Reply:
    """Return the upload address of each large file that is not stored yet."""
    objects = []
    for entry in json.loads(body)["objects"]:
        answer: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
        if entry["oid"] not in hub.objects:
            answer["actions"] = {"upload": {"href": f"{hub.url}/lfs/{entry['oid']}"}}
        objects.append(answer)
    return reply_json({"transfer": "basic", "objects": objects})


def lfs_store(hub: Hub, oid: str, body: bytes) -> Reply:
    """Store an uploaded file if it has the stated hash."""
    if hashlib.sha256(body).hexdigest() != oid:
        return Reply(400, message="The content does not have the stated hash")
    hub.objects[oid] = body
    return Reply(200)


def commit(hub: Hub, name: str, body: bytes) -> Reply:
    """Apply all operations as one new commit, or none of them."""
    files = dict(hub.history[name][-1].files)
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = Blob(content, len(content))
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
        elif entry["key"] == "lfsFile":
            hashed = "" if value["oid"] in hub.objects else xet.hash_of(hub, value["oid"])
            if not hashed and value["oid"] not in hub.objects:
                return Reply(400, message=f"The large file {value['path']} was not uploaded")
            content = hub.objects.get(value["oid"], b"")
            files[value["path"]] = Blob(content, value["size"], value["oid"], hashed)
    oid = hub.append(name, files)
    address = f"{hub.url}/{name}/commit/{oid}"
    return reply_json({"success": True, "commitOid": oid, "commitUrl": address, "hookOutput": ""})
