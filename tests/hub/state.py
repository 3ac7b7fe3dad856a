"""What the Hub stand-in knows: accounts and their rights, repositories and their commits, and when the line breaks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub.machines import Jobs
from tests.hub.space_state import Spaces

# Endings of the files that are kept as large ones.
LARGE = (".safetensors", ".png")


@dataclass(frozen=True)
class Account:
    """Who a token belongs to.

    `role` is the token's: "write", "read" or "fineGrained", which writes in the namespaces of `scopes` alone. `orgs`
    maps the organisations of its owner to the owner's role in each.
    """

    name: str
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()

    def may_write(self, repo: str) -> bool:
        """Whether the token may create or change this repository."""
        namespace = repo.removeprefix("datasets/").split("/", maxsplit=1)[0]
        if self.role == "fineGrained":
            return namespace in self.scopes
        return self.role == "write" and (
            namespace == self.name or self.orgs.get(namespace) in ("admin", "write", "contributor")
        )


@dataclass(frozen=True)
class Blob:
    """One file of a commit. Of a large file `sha256` is set; where Xet keeps it, `xet` is its hash there."""

    content: bytes
    size: int
    sha256: str = ""
    xet: str = ""

    @property
    def oid(self) -> str:
        """Git's hash of a small file, the SHA-256 of a large one."""
        return self.sha256 or hashlib.sha1(b"blob %d\0" % self.size + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """One state of a repository: its hash and all of its files."""

    oid: str
    files: Mapping[str, Blob]


@dataclass
class Hub:
    """What the stand-in serves.

    `repositories` are folders on disk, one commit each; `history` holds what was created and written over HTTP, the
    oldest commit first. `requests` lists the method and path of all that was asked. `cuts` says how many more times
    the line breaks: half way through an "upload", a "commit" or a "download", before a commit's "reply" or that of a
    "job" that was begun, in the middle of a job's "log", or instead of an "answer" to whoever wants a file, or the
    address of "xet". With `xet`, a folder, large files travel by Xet, otherwise by LFS. `login` is the token that
    logging in on a Space gives; `codes` are the logins under way.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)
    history: dict[str, list[Commit]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    cuts: Counter[str] = field(default_factory=Counter)
    xet: Path | None = None
    jobs: Jobs = field(default_factory=Jobs)
    login: str = ""
    codes: dict[str, str] = field(default_factory=dict)
    spaces: Spaces = field(default_factory=Spaces)
    url: str = ""

    def add(self, name: str, folder: Path) -> str:
        """A new commit of the repository with the files of `folder`, as if they had been uploaded; its hash."""
        files = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest() if path.suffix in LARGE else ""
            files[path.relative_to(folder).as_posix()] = Blob(content, len(content), sha256)
        return self.append(name, files)

    def append(self, name: str, files: dict[str, Blob]) -> str:
        """A new commit of the repository with these files; its hash."""
        commits = self.history.setdefault(name, [])
        state = json.dumps([name, len(commits), sorted((path, blob.oid) for path, blob in files.items())])
        commits.append(Commit(hashlib.sha1(state.encode()).hexdigest(), files))
        return commits[-1].oid

    def commit(self, name: str) -> str:
        """The repository's latest commit; of a folder, 40 hex digits that depend on its files."""
        if name in self.history:
            return self.history[name][-1].oid
        digest = hashlib.sha1(name.encode())
        for path in self.files(name):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, name: str) -> list[Path]:
        """A folder's files, sorted."""
        return sorted(path for path in self.repositories[name].rglob("*") if path.is_file())

    def knows(self, name: str) -> bool:
        """Whether there is such a repository."""
        return name in self.repositories or name in self.history

    def at(self, name: str, revision: str | None) -> Commit | None:
        """The repository's state at a revision ("main" or none: the latest), None where there is none."""
        if name in self.history:
            commits = self.history[name]
            return next((each for each in reversed(commits) if revision in (None, "main", each.oid)), None)
        if revision not in (None, "main", self.commit(name)):
            return None
        folder = self.repositories[name]
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in self.files(name)}
        return Commit(self.commit(name), {path: Blob(content, len(content)) for path, content in contents.items()})

    def breaks(self, what: str) -> bool:
        """Whether the line breaks now; counts down."""
        broken = self.cuts[what] > 0
        self.cuts[what] -= broken
        return broken

    def may_read(self, name: str, account: Account | None) -> bool:
        """Whether a repository shows at all to this account."""
        return name not in self.private or (account is not None and account.may_write(name))
