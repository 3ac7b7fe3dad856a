"""State of the local Hub: accounts and their rights, repositories and their commits, and connections to break."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub.machines import Jobs
from tests.hub.space_state import Spaces

# File name endings of large files.
LARGE = (".safetensors", ".png")


@dataclass(frozen=True)
class Account:
    """The owner of a token, and the token's rights.

    `role` is "write", "read" or "fineGrained", which writes only in the namespaces of `scopes`. `orgs`
    maps the organisations of its owner to the owner's role in each.
    """

    name: str
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()

    def may_write(self, repo: str) -> bool:
        """Return whether the token may create or change this repository."""
        namespace = repo.removeprefix("datasets/").split("/", maxsplit=1)[0]
        if self.role == "fineGrained":
            return namespace in self.scopes
        return self.role == "write" and (
            namespace == self.name or self.orgs.get(namespace) in ("admin", "write", "contributor")
        )


@dataclass(frozen=True)
class Blob:
    """A file of a commit. Large files have a `sha256`; files stored by Xet have their Xet hash in `xet`."""

    content: bytes
    size: int
    sha256: str = ""
    xet: str = ""

    @property
    def oid(self) -> str:
        """Return Git's hash of a small file, or the SHA-256 of a large one."""
        return self.sha256 or hashlib.sha1(b"blob %d\0" % self.size + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A commit of a repository: its hash and all its files."""

    oid: str
    files: Mapping[str, Blob]


@dataclass
class Hub:
    """State of the local Hub.

    `repositories` are folders on disk, one commit each; `history` has the repositories written over HTTP, the oldest
    commit first. `requests` lists method and path of all requests. `cuts` is the number of times that the
    connection will break, by event: half way through an "upload", a "commit" or a "download", before the "reply" to a
    commit or to a started "job", in the middle of a job's "log", or instead of an "answer" with a file or of the
    address of "xet". With `xet`, a
    folder, large files are transferred by Xet, otherwise by LFS. `login` is the token that a login on a Space gives;
    `codes` are the logins in progress.
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
        """Add a commit with the files of `folder`; return its hash."""
        files = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest() if path.suffix in LARGE else ""
            files[path.relative_to(folder).as_posix()] = Blob(content, len(content), sha256)
        return self.append(name, files)

    def append(self, name: str, files: dict[str, Blob]) -> str:
        """Add a commit with these files; return its hash."""
        commits = self.history.setdefault(name, [])
        state = json.dumps([name, len(commits), sorted((path, blob.oid) for path, blob in files.items())])
        commits.append(Commit(hashlib.sha1(state.encode()).hexdigest(), files))
        return commits[-1].oid

    def commit(self, name: str) -> str:
        """Return the latest commit; for a folder, 40 hex digits that depend on its files."""
        if name in self.history:
            return self.history[name][-1].oid
        digest = hashlib.sha1(name.encode())
        for path in self.files(name):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, name: str) -> list[Path]:
        """Return a folder's files, sorted."""
        return sorted(path for path in self.repositories[name].rglob("*") if path.is_file())

    def knows(self, name: str) -> bool:
        """Return whether the repository exists."""
        return name in self.repositories or name in self.history

    def at(self, name: str, revision: str | None) -> Commit | None:
        """Return the commit of a revision ("main" or None: the latest), None for an unknown one."""
        if name in self.history:
            commits = self.history[name]
            return next((commit for commit in reversed(commits) if revision in (None, "main", commit.oid)), None)
        if revision not in (None, "main", self.commit(name)):
            return None
        folder = self.repositories[name]
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in self.files(name)}
        return Commit(self.commit(name), {path: Blob(content, len(content)) for path, content in contents.items()})

    def breaks(self, what: str) -> bool:
        """Return whether the connection breaks at this event, and count it."""
        broken = self.cuts[what] > 0
        self.cuts[what] -= broken
        return broken

    def may_read(self, name: str, account: Account | None) -> bool:
        """Return whether this account can read the repository."""
        return name not in self.private or (account is not None and account.may_write(name))
