"""API keys: who may call."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from samebits.config import ServerConfig
from samebits.errors import ConfigError

LONGEST_KEY = 512

Headers = Iterable[tuple[bytes, bytes]]


class Keys:
    """A set of keys. Holds their digests, so that no key can end in a log or a trace."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, headers: Headers) -> bool:
        """Whether a request with these headers carries a key, as `Authorization: Bearer KEY` or `x-api-key: KEY`.

        The time that this takes says nothing about the keys.
        """
        admitted = False
        for candidate in _candidates(headers):
            digest = _digest(candidate)
            for known in self._digests:
                admitted |= hmac.compare_digest(digest, known)
        return admitted


def load_keys(config: ServerConfig) -> Keys:
    """The keys of `--api-key` and `--api-key-file`. Raises `ConfigError`, which names no key."""
    keys = list(config.api_key)
    for key in keys:
        _check(key, "--api-key")
    if config.api_key_file:
        keys += _read(Path(config.api_key_file))
    return Keys(keys)


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read the --api-key-file {path}: {reason}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if key and not key.startswith("#"):
            _check(key, f"{path}, line {number}")
            keys.append(key)
    if not keys:
        raise ConfigError(f"the --api-key-file {path} holds no key")
    return keys


def _check(key: str, source: str) -> None:
    if not key or len(key) > LONGEST_KEY or not all("!" <= letter <= "~" for letter in key):
        raise ConfigError(f"{source}: a key is 1 to {LONGEST_KEY} printable ASCII characters without spaces")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _candidates(headers: Headers) -> Iterable[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield credentials.strip()
