"""Inter-process locks and atomic writes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.files import acquire_lock, atomic_write, check_writable, file_lock, is_locked
from errors import PromptOrTuneError
from tests import messages

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from common.files import acquire_lock
lock = acquire_lock(Path(sys.argv[1]))
print("held" if lock else "busy", flush=True)
time.sleep(60)
"""


def test_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_locked(path)
        assert acquire_lock(path, timeout=0.05) is None
        with pytest.raises(PromptOrTuneError, match=messages.LOCK_HELD), file_lock(path, timeout=0.05):
            pass
        holder.kill()
    assert not is_locked(path)
    with file_lock(path, timeout=0.05):
        assert is_locked(path)
    assert not is_locked(path)


def test_lock_can_be_released_by_another_thread(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path / "lock")
    assert lock is not None
    thread = threading.Thread(target=lock.lock.release)
    thread.start()
    thread.join()
    assert not is_locked(tmp_path / "lock")


def test_is_locked_creates_no_file_and_acquire_lock_no_folder(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PromptOrTuneError, match=messages.CANNOT_WRITE):
        acquire_lock(tmp_path / "none" / "lock")
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_replaces_the_file_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, "one")
    atomic_write(path, b"two")
    check_writable(path)
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    with pytest.raises(PromptOrTuneError, match=messages.PATH_IS_FOLDER):
        check_writable(tmp_path)
