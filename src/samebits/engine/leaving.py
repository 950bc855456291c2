"""Ends of what may never end: libraries of devices wait for ever where a device has failed or a rank is gone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

THREAD = "samebits-leaving"
"""name of the threads that do what may never end"""


def ends_within(seconds: float, work: Callable[[], None]) -> bool:
    """Do work in a thread of its own, and tell whether it ended in time. If not, the thread stays, and `leave` is the
    way to end the process."""
    thread = threading.Thread(target=work, name=THREAD, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def leave(status: int) -> NoReturn:
    """End the process with this exit status, even if something still has not ended. A thread that comes back from a
    library of C++ while Python takes itself down aborts the process, so then Python is not taken down."""
    if any(thread.name == THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
