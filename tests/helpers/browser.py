"""A headless Chromium of this machine, driven by playwright; tests that need it are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REFUSED_LOAD = "Failed to load resource: the server responded with a status of"
"""what the console says of any status from 400 on"""


def chromium() -> str:
    """Where the browser is. Skips the test where there is none: `apt-get install chromium` brings one."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    return found


@contextmanager
def browsing(url: str, **context: Any) -> Iterator[Page]:
    """A page at `url`. Raises in the end for anything that the console complained about: a script's error, a file
    that the content security policy held back."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    complaints: list[str] = []
    with playwright.sync_playwright() as driver:
        # Containers have no user namespaces to build a sandbox of, and the only page is ours.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1180, "height": 800}, **context)
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: _note(message, complaints))
            page.goto(url)
            yield page
        finally:
            browser.close()
    assert not complaints, complaints


def _note(message: Any, complaints: list[str]) -> None:
    if message.type in ("error", "warning") and not message.text.startswith(REFUSED_LOAD):
        complaints.append(message.text)
