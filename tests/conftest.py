"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# The same examples at every run: a suite that watches over determinism is a function of the code alone.
settings.register_profile("samebits", derandomize=True, deadline=None)
settings.load_profile("samebits")
