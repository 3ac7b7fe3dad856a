"""Settings of a Hugging Face Space, read from its environment; empty on any other machine.

Sources: the Hub's manual (Spaces overview, "Helper environment variables"; Spaces storage; ZeroGPU) and, for
SPACES_ZERO_GPU, the package `spaces` (spaces/config.py).
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Where a Space mounts persistent storage, if it has any.
STORAGE_DIR = Path("/data")


@dataclass(frozen=True)
class SpaceSettings:
    """What follows from running on a Space; all fields are empty elsewhere.

    `id` is "owner/name". `owner` is the person or organisation that the Space belongs to; `owners` adds the names in
    PROMPT_OR_TUNE_OWNERS, which an organisation needs, since a login is always a person's. `persistent_cache_dir` is
    the value for PROMPT_OR_TUNE_HOME with which jobs, votes and adapters outlive a restart; None where no storage is
    mounted, or where PROMPT_OR_TUNE_HOME is set already. `host` is the name under which browsers reach the Space. With
    `oauth` people can log in with the Hub.
    """

    id: str = ""
    owner: str = ""
    owners: frozenset[str] = frozenset()
    zero_gpu: bool = False
    persistent_cache_dir: Path | None = None
    host: str = ""
    oauth: bool = False

    @property
    def is_space(self) -> bool:
        return bool(self.id)

    @property
    def training_access(self) -> Literal["everyone", "owner", "nobody"]:
        """Who may train by default: no user on ZeroGPU, where a GPU is available for seconds only."""
        if not self.is_space:
            return "everyone"
        return "nobody" if self.zero_gpu else "owner"


def space_settings(environ: Mapping[str, str], storage: Path = STORAGE_DIR) -> SpaceSettings:
    """Read the settings from `environ`, and probe `storage` with a database that is removed again."""
    id = environ.get("SPACE_ID", "").strip()
    if not id:
        return SpaceSettings()
    owner = environ.get("SPACE_AUTHOR_NAME", "").strip() or id.partition("/")[0]
    listed = (name.strip() for name in environ.get("PROMPT_OR_TUNE_OWNERS", "").split(","))
    use_storage = not environ.get("PROMPT_OR_TUNE_HOME") and sqlite_works(storage)
    return SpaceSettings(
        id=id,
        owner=owner,
        owners=frozenset(name for name in (owner, *listed) if name),
        zero_gpu=environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"),
        persistent_cache_dir=storage / "prompt-or-tune" if use_storage else None,
        host=environ.get("SPACE_HOST", "").split(",")[0].strip(),
        oauth=bool(environ.get("OAUTH_CLIENT_ID")),
    )


def sqlite_works(folder: Path) -> bool:
    """Whether SQLite works in `folder`, which needs locks and writes in the middle of a file.

    Storage that is mounted over a network does not always have both, and the votes and the job queue are databases.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".prompt-or-tune-", dir=folder) as probe:
            connection = sqlite3.connect(Path(probe) / "probe.sqlite", timeout=5)
            try:
                with connection:
                    connection.execute("CREATE TABLE probe (value INTEGER)")
                    connection.execute("INSERT INTO probe VALUES (1)")
                with connection:
                    connection.execute("UPDATE probe SET value = 2")
                return bool(connection.execute("SELECT value FROM probe").fetchone() == (2,))
            finally:
                connection.close()
    except (OSError, sqlite3.Error):
        return False
