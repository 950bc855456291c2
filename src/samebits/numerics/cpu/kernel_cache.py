"""Compiled kernels on disk. The key is a digest of all kernel sources, so that no stale helper survives in one.

Numba's own key looks at the file of the cached function alone; a kernel is built from helpers of many files. A cache
that cannot be read or written only costs time: the kernel is compiled.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.registry import cpu_target
from numba.misc.appdirs import AppDirs

KERNEL_SOURCES = Path(__file__).parent
CONTRACT_SOURCE = KERNEL_SOURCES.parent / "contract.py"
logger = logging.getLogger(__name__)


@functools.cache
def source_digest() -> str:
    """Digest of every file that a kernel may be built from, and of the compiler's versions."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in [*sorted(KERNEL_SOURCES.glob("*.py")), CONTRACT_SOURCE]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


@functools.cache
def processor_digest() -> str:
    """Digest of the processor that kernels are compiled for: its name and features."""
    return hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode()).hexdigest()[:8]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@functools.cache
def cache_folder(configured: str) -> Path:
    """NUMBA_CACHE_DIR where it is set, else beside the sources, else the user's cache directory."""
    name = f"samebits-kernels-{source_digest()}"
    if configured:
        return Path(configured) / name
    beside = KERNEL_SOURCES / "__pycache__" / name
    if _is_writable(beside):
        return beside
    return Path(AppDirs(appname="samebits", appauthor=False).user_cache_dir) / name


class _SourceLocator(_CacheLocator):
    """Tells numba where a kernel's files are; the folder's name holds the digest of the sources."""

    def __init__(self, line: int) -> None:
        self._line = line

    def get_cache_path(self) -> str:
        return os.fspath(cache_folder(config.CACHE_DIR))

    def get_source_stamp(self) -> str:
        return source_digest()

    def get_disambiguator(self) -> str:
        """Every kind of processor has files of its own: of two that share a folder and start at the same time, numba
        may give one the other's code under its own key."""
        return f"{self._line}-{processor_digest()}"

    @classmethod
    def from_function(cls, function, file) -> _SourceLocator:
        return cls(function.__code__.co_firstlineno)


class _KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes = [_SourceLocator]  # noqa: RUF012 (numba reads it from the class)


class KernelCache(FunctionCache):
    """Numba's cache of one function, with the key and place of this module."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What is kept for a signature; None where nothing is, or nothing whole: a machine that lost its power may
        leave half a file."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # pickle raises whatever half an object leads to
            logger.info(
                "%s: a compiled kernel cannot be read, so it is compiled again: %r", self.cache_path, error
            )
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel where that is possible."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _tell_once(self.cache_path, error.strerror)

    def _index_key(self, signature, codegen) -> tuple:
        """Signature, triple, CPU name and features. A closure's values follow from the function's name."""
        return signature, codegen.magic_tuple()


@functools.cache
def _tell_once(folder: str, reason: str) -> None:
    logger.warning(
        "compiled kernels are not kept, so every start compiles them: cannot write %s (%s); NUMBA_CACHE_DIR names "
        "another folder", folder, reason,
    )  # fmt: skip
