"""Digests of shards: right, kept between starts, and computed again as soon as a file may have changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from samebits.errors import ModelFileError
from samebits.models import digests
from samebits.models.digests import (
    check_unchanged,
    file_digest,
    file_state,
    text_digests,
    user_cache_folder,
    weight_digests,
)
from samebits.models.progress import silent

LONG_AGO = 1_600_000_000


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard written long ago. Nobody can say so of the file's last change, so that one is taken for settled."""
    monkeypatch.setattr(digests, "SETTLED_NANOSECONDS", -1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 1000)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes are read from now on."""
    read: list[Path] = []

    def record(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", record)
    return read


def test_digest_is_of_the_bytes(shard: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(shard.read_bytes()).hexdigest()
    assert weight_digests((shard,), tmp_path / "cache", silent) == {"model.safetensors": expected}


def test_second_start_reads_nothing(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch)
    first = weight_digests((shard,), tmp_path / "cache", silent)
    assert weight_digests((shard,), tmp_path / "cache", silent) == first
    assert len(read) == 1


def test_changed_size_or_time_is_read_again(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted(monkeypatch)
    first = weight_digests((shard,), tmp_path / "cache", silent)
    shard.write_bytes(b"WEIGHTS" * 1000)
    os.utime(shard, (LONG_AGO + 1, LONG_AGO + 1))
    second = weight_digests((shard,), tmp_path / "cache", silent)
    assert second != first
    shard.write_bytes(b"WEIGHTS" * 1001)
    os.utime(shard, (LONG_AGO + 1, LONG_AGO + 1))
    assert weight_digests((shard,), tmp_path / "cache", silent) not in (first, second)
    assert len(read) == 3


def test_other_bytes_of_the_same_size_and_time_are_read(shard: Path, tmp_path: Path) -> None:
    """As a container's image, a store or a copy that keeps times leaves them."""
    first = weight_digests((shard,), tmp_path / "cache", silent)
    other = tmp_path / "other"
    other.write_bytes(b"WEIGHTS" * 1000)
    os.utime(other, (LONG_AGO, LONG_AGO))
    os.replace(other, shard)
    assert weight_digests((shard,), tmp_path / "cache", silent) != first


@pytest.mark.parametrize("time", [None, (LONG_AGO, LONG_AGO)], ids=["written now", "written long ago"])
def test_fresh_file_is_not_kept(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: tuple[int, int] | None
) -> None:
    """A file changed a moment ago may change again within the tick of its time stamps."""
    monkeypatch.undo()
    read = counted(monkeypatch)
    os.utime(shard, time)
    first = weight_digests((shard,), tmp_path / "cache", silent)
    assert weight_digests((shard,), tmp_path / "cache", silent) == first
    assert len(read) == 2


def test_a_shard_that_was_replaced_is_told(shard: Path, tmp_path: Path) -> None:
    state, digest = file_state(shard), file_digest(shard)
    check_unchanged(shard, state, digest)
    os.utime(shard)
    check_unchanged(shard, state, digest)
    shard.write_bytes(b"WEIGHTS" * 1000)
    os.utime(shard, (LONG_AGO, LONG_AGO))
    with pytest.raises(ModelFileError, match="was replaced while the model was loaded"):
        check_unchanged(shard, state, digest)
    shard.unlink()
    with pytest.raises(ModelFileError, match="cannot read"):
        check_unchanged(shard, state, digest)


def test_damaged_or_unwritable_cache_costs_time_only(shard: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = weight_digests((shard,), cache, silent)
    (entry,) = (cache / "digests").iterdir()
    for damage in ("{", "[]", json.dumps({**json.loads(entry.read_text()), "sha256": 3})):
        entry.write_text(damage)
        assert weight_digests((shard,), cache, silent) == first
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    assert weight_digests((shard,), blocked, silent) == first


def test_progress_counts_shards(shard: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    weight_digests((shard,), tmp_path / "cache", lambda _, done, total: seen.append((done, total)))
    assert seen == [(0, 1), (1, 1)]


def test_text_files(tmp_path: Path) -> None:
    assert text_digests(tmp_path) == {}
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "README.md").write_text("not of the plan")
    assert set(text_digests(tmp_path)) == {"tokenizer.json", "chat_template.jinja"}


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="absent"):
        file_digest(tmp_path / "absent")


def test_cache_folder_follows_the_platforms_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert user_cache_folder() == Path("/elsewhere/samebits")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache_folder() == Path.home() / ".cache" / "samebits"
