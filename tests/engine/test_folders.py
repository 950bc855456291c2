"""Folders of processes that died are removed by the next one; those of processes that live are not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from samebits.engine.folders import OWNER, OwnedFolder

SOURCE = Path(__file__).parents[2] / "src"
HOLD = """
import sys
from samebits.engine.folders import OwnedFolder
print(OwnedFolder("held-").path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def start_holder() -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a folder, and the folder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{HOLD}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    return holder, Path(holder.stdout.readline().strip())


def test_the_folder_of_a_killed_process_goes_with_the_next_one() -> None:
    holder, held = start_holder()
    (held / "more").write_text("")
    mine = OwnedFolder()
    assert held.exists() and mine.path.exists(), "both owners live"
    holder.kill()
    holder.wait()
    assert held.exists()
    another = OwnedFolder()
    assert not held.exists()
    assert mine.path.exists() and another.path.exists()
    mine.remove()
    another.remove()
    assert not mine.path.exists() and not another.path.exists()


def test_removing_one_removes_those_of_children_that_died() -> None:
    mine = OwnedFolder()
    holder, held = start_holder()
    holder.kill()
    holder.wait()
    mine.remove()
    assert not held.exists()
    mine.remove()  # twice does no harm


def test_what_nobody_owned_is_left_alone(temporary: Path) -> None:
    unowned, elsewhere = temporary / "samebits-20260101", temporary / "elsewhere"
    for folder in (unowned, elsewhere):
        folder.mkdir()
    (elsewhere / OWNER).write_text("")
    (temporary / "samebits-link").symlink_to(elsewhere)
    OwnedFolder().remove()
    assert unowned.exists() and (elsewhere / OWNER).exists()
