"""Digests of model files for the fingerprint, kept on disk so that a restart need not read the weights twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path

from samebits.errors import ModelFileError
from samebits.models.progress import Progress

STAGE = "hashing weights"
TEXT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files that decide how text becomes tokens and messages become a prompt."""
SETTLED_NANOSECONDS = 2_000_000_000
"""A file that changed more recently may yet change within the tick of its time stamps, so its digest is not kept."""
logger = logging.getLogger(__name__)


def user_cache_folder() -> Path:
    """Where Samebits keeps what it can compute again."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "samebits"


def proof_folder() -> Path:
    """Where the proofs of GPU kernels are kept."""
    return user_cache_folder() / "proofs"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises `ModelFileError` naming the file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def file_state(path: Path) -> dict[str, int]:
    """What tells whether a file is the one that it was. Size and time of its bytes alone do not: images of containers
    and copies that keep times give other weights of the same shapes both. Raises `ModelFileError` naming the file."""
    try:
        found = path.stat()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    return {
        "size": found.st_size,
        "time": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
        "inode": found.st_ino,
    }


def check_unchanged(shard: Path, state: dict[str, int], digest: str) -> None:
    """Raise `ModelFileError` where a shard no longer is what it was when it had that state and digest."""
    if file_state(shard) != state and file_digest(shard) != digest:
        raise ModelFileError(
            f"{shard} was replaced while the model was loaded, so the weights may be of both; start again"
        )


def weight_digests(shards: tuple[Path, ...], cache: Path, progress: Progress) -> dict[str, str]:
    """Digest of each shard by its name. One that `cache` holds for the same path and state is not computed again; a
    cache that cannot be written only costs time."""
    digests: dict[str, str] = {}
    progress(STAGE, 0, len(shards))
    for done, shard in enumerate(shards, start=1):
        digests[shard.name] = _cached_digest(shard, cache / "digests")
        progress(STAGE, done, len(shards))
    return digests


def text_digests(folder: Path) -> dict[str, str]:
    """Digest of each file of the tokenizer and chat template that the folder holds, by name."""
    return {name: file_digest(folder / name) for name in TEXT_FILES if (folder / name).is_file()}


def _cached_digest(shard: Path, cache: Path) -> str:
    real = shard.resolve()
    state = file_state(real)
    key = {"path": str(real), **state}
    entry = cache / (hashlib.sha256(str(real).encode()).hexdigest()[:32] + ".json")
    known = _read_entry(entry)
    digest = known.pop("sha256", None)
    if known == key and isinstance(digest, str):
        return digest
    digest = file_digest(real)
    if time.time_ns() - max(state["time"], state["changed"]) > SETTLED_NANOSECONDS:
        _write_entry(entry, {**key, "sha256": digest})
    return digest


def _read_entry(path: Path) -> dict[str, object]:
    """An entry of the cache; empty when there is none or it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_entry(path: Path, values: dict[str, object]) -> None:
    """Write through a temporary file, so that another process sees the old entry or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file)
        os.replace(temporary, path)
    except OSError as error:
        logger.info("the digest of a shard is not kept: cannot write %s: %s", path, error)
