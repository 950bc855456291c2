"""A process in which something does not end ends all the same, with its own exit status."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, threading
from samebits import cli
from samebits.engine.leaving import THREAD

def main():
    print("figures", end="")
    thread = threading.Thread(target={work}, name=THREAD, daemon=True)
    thread.start()
    thread.join({seconds})
    assert thread.is_alive() is not {ends}
    return 3

atexit.register(lambda: print(", and Python taken down", end=""))
cli.main = main
cli.command()
"""


@pytest.mark.parametrize(
    ("seconds", "work", "ends", "printed"),
    [
        (0.1, "threading.Event().wait", False, "figures"),
        (60, "lambda: None", True, "figures, and Python taken down"),
    ],
    ids=["waits for ever", "ends"],
)
def test_status_and_output_are_kept(seconds: float, work: str, ends: bool, printed: str) -> None:
    program = PROGRAM.format(seconds=seconds, work=work, ends=ends)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, printed), done.stderr
