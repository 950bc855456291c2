"""Folders in which processes meet, and which no crash leaves behind for good.

The owner keeps a file in its folder locked. The system frees the lock when the owner ends, whatever ended it, and a
folder whose lock is free is removed by the next process that makes or removes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

PREFIX = "samebits-"
OWNER = "owner"
"""the locked file"""


class OwnedFolder:
    """A folder for temporary files, this user's alone (mode 0700), for as long as this process lives."""

    def __init__(self, kind: str = "") -> None:
        """`kind` becomes a part of its name."""
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX + kind))
        being_made = self.path / f"{OWNER}.new"
        self._lock = os.open(being_made, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(OSError):  # where files cannot be locked, nobody removes it but this process
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            being_made.rename(self.path / OWNER)  # nobody meets it unlocked

    def remove(self) -> None:
        """Remove it, and those that children of this process died in."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1
        remove_abandoned()


def remove_abandoned() -> None:
    """Remove this user's folders whose owners are no more."""
    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError):
            folder = owner.parent.lstat()
            if stat.S_ISDIR(folder.st_mode) and folder.st_uid == os.geteuid():
                _remove_if_free(owner)


def _remove_if_free(owner: Path) -> None:
    lock = os.open(owner, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(owner.parent, ignore_errors=True)
    finally:
        os.close(lock)
