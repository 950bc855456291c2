"""The end of a process in which something may never end: libraries of devices wait for ever where a device has failed
or a rank is gone."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

THREAD = "samebits-ranks"
"""name of the threads that do what may never end"""


def leave(status: int) -> NoReturn:
    """End the process with this exit status, even if something still has not ended. A thread that comes back from a
    library of C++ while Python takes itself down aborts the process, so then Python is not taken down."""
    if any(thread.name == THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
