"""Large files by Xet, which huggingface_hub uses if hf_xet is installed.

The real hf_xet can store files in a folder instead of on a server. So the local Hub returns `local://` addresses, and
reads the Xet hash of each SHA-256 from the shards that hf_xet writes there. A shard is a sequence of 48-byte records
(github.com/huggingface/xet-core, `mdb_shard`): each file is a header, its segments, as many verification records, and
one record with the SHA-256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.hub.reading import Reply, reply_json
from tests.hub.state import Hub

_RECORD = 48
_NEVER = 4_000_000_000


def token(hub: Hub) -> Reply:
    """Return address and token of the store, in the headers (for Python) and in JSON (for hf_xet)."""
    address = f"local://{hub.xet}"
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(_NEVER)}
    answer: dict[str, Any] = {"casUrl": address, "accessToken": "xet", "exp": _NEVER}
    plain = reply_json(answer)
    return Reply(200, plain.content, plain.headers | headers)


def hash_of(hub: Hub, sha256: str) -> str:
    """Return the Xet hash of the file with this SHA-256, '' if it was not uploaded."""
    shards = sorted((hub.xet or Path("/nowhere")).rglob("*.mdb"))
    return next((found for shard in shards if (found := _files(shard.read_bytes()).get(sha256))), "")


def _files(shard: bytes) -> dict[str, str]:
    """Return the Xet hashes of all files in a shard by SHA-256."""
    found: dict[str, str] = {}
    offset = _RECORD  # the records follow the shard's header
    while shard[offset : offset + 32] not in (b"\xff" * 32, b""):
        header = shard[offset : offset + _RECORD]
        flags, segments = (int.from_bytes(header[at : at + 4], "little") for at in (32, 36))
        offset += _RECORD * (1 + segments * (2 if flags >> 31 & 1 else 1))
        if flags >> 30 & 1:
            found[_hex(shard[offset : offset + 32])] = _hex(header[:32])
            offset += _RECORD
    return found


def _hex(value: bytes) -> str:
    """Format a hash: four little-endian numbers of 64 bits."""
    return "".join(value[at : at + 8][::-1].hex() for at in range(0, 32, 8))
