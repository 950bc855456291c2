"""Proofs on disk, so that a later start binds in seconds what the first start proved.

A file belongs to one device key: the device, its driver, the versions of everything that compiles or computes,
the contract, and the kernels' sources. Another key is another file. The key stands inside the file, too, under a
checksum with the entries: a file that was copied from elsewhere or edited is refused, not believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from samebits.errors import NumericsError

FORMAT = 1


class TriedRecord(msgspec.Struct, frozen=True):
    """What became of one candidate."""

    name: str
    identity: str
    seconds: float | None
    rejection: str = ""


class ProofRecord(msgspec.Struct, frozen=True):
    """What serves one operator at one shape and bucket, and what it was chosen from."""

    clause: str
    problem: str
    bucket: int
    chosen: str
    identity: str
    bytes: int
    operations: int
    tried: tuple[TriedRecord, ...]

    @property
    def place(self) -> tuple[str, str, int]:
        return self.clause, self.problem, self.bucket

    @property
    def seconds(self) -> float:
        """Of one run of the chosen candidate."""
        return next(entry.seconds or 0.0 for entry in self.tried if entry.name == self.chosen)


class ProofFile(msgspec.Struct, frozen=True):
    """The file's content; `checksum` is over all else."""

    format: int
    key: dict[str, str]
    entries: tuple[ProofRecord, ...]
    checksum: str


def digest_of_key(key: dict[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(key, order="sorted")).hexdigest()


def _checksum(key: dict[str, str], entries: Iterable[ProofRecord]) -> str:
    content = msgspec.json.encode([FORMAT, key, list(entries)], order="sorted")
    return hashlib.sha256(content).hexdigest()


class ProofStore:
    """The proofs of one device key."""

    def __init__(self, folder: Path, key: dict[str, str]) -> None:
        """Read what `folder` holds for `key`. Raises `NumericsError` where the file is not what was written for
        this key."""
        self.key = key
        self.path = folder / f"{digest_of_key(key)[:32]}.json"
        self._entries: dict[tuple[str, str, int], ProofRecord] = {}
        self._added: dict[tuple[str, str, int], ProofRecord] = {}
        """what the file does not hold yet"""
        self.read()

    @property
    def entries(self) -> tuple[ProofRecord, ...]:
        return tuple(self._entries.values())

    def find(self, clause: str, problem: str, bucket: int) -> ProofRecord | None:
        return self._entries.get((clause, problem, bucket))

    def add(self, record: ProofRecord) -> None:
        self._entries[record.place] = self._added[record.place] = record

    def save(self) -> None:
        """Add to the file what was added here; what others wrote to it meanwhile stays. A folder that cannot be
        written raises `NumericsError`."""
        try:
            with self._locked():
                self.read()
                entries = self.entries
                content = ProofFile(FORMAT, self.key, entries, _checksum(self.key, entries))
                # Through a temporary file: readers take no lock.
                handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.stem)
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(content))
                os.replace(temporary, self.path)
        except OSError as error:
            raise NumericsError(f"cannot write the proofs to {self.path}: {error.strerror}") from error
        self._added.clear()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Until the end of the block no other process saves."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self) -> None:
        """Take in what the file holds by now. Raises `NumericsError` as at first."""
        if not self.path.exists():
            return
        try:
            content = msgspec.json.decode(self.path.read_bytes(), type=ProofFile)
        except (OSError, msgspec.DecodeError) as error:
            raise NumericsError(
                f"{self.path} is no file of proofs ({error}); delete it to prove the kernels again"
            ) from error
        differing = sorted(
            name
            for name in self.key.keys() | content.key.keys()
            if self.key.get(name) != content.key.get(name)
        )
        if differing or content.format != FORMAT:
            raise NumericsError(
                f"{self.path} holds the proofs of another device or version (other "
                f"{', '.join(differing) or 'format'}); proofs are not carried over: delete the file to prove the "
                "kernels here"
            )
        if content.checksum != _checksum(content.key, content.entries):
            raise NumericsError(
                f"{self.path} was changed after it was written; delete it to prove the kernels again"
            )
        self._entries = {record.place: record for record in content.entries} | self._added
