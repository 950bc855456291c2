"""The prefix cache at a million tokens, ours and (from a checkout of it) mini-sglang's, through the same motions.

Times are the processor's, of all threads, so that other processes on the same cores do not count.
"""

from __future__ import annotations

import gc
import importlib
import random
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from samebits.bench.null_model import VOCABULARY
from samebits.cache.pages import PagePool
from samebits.cache.radix import PrefixCache, page_keys, token_data
from samebits.errors import ConfigError

CACHED_TOKENS = 1 << 20
TEXT_TOKENS = 2048
PAGE_TOKENS = 64
TEXTS_A_STEM = 8
"""this many texts share their first half"""


@dataclass(frozen=True)
class Tree:
    """A prefix cache behind three motions. A text is what its engine makes of token ids, once a request: page keys
    of ours, a tensor of mini-sglang."""

    name: str
    prepare: Callable[[list[int]], Any]
    insert: Callable[[Any], None]
    """a text was computed: keep it, and let go of it"""
    match: Callable[[Any], int]
    """how many tokens of a text are cached"""
    evict: Callable[[int], None]
    """let go of this many tokens"""


def measure_tree(tree: Tree) -> dict[str, float]:
    """Nanoseconds a token: to take in texts up to a million cached tokens, to find them, to miss, and to evict."""
    source = random.Random(0)
    lists = _texts(source, 2 * CACHED_TOKENS // TEXT_TOKENS)
    texts: list[Any] = []
    prepared = _seconds(lambda tokens: texts.append(tree.prepare(tokens)), lists)
    strangers = [tree.prepare(_tokens(source, TEXT_TOKENS)) for _ in range(64)]
    gc.collect()
    total = len(texts) * TEXT_TOKENS
    inserted = _seconds(tree.insert, texts)
    order = random.Random(1).sample(texts, len(texts))
    found: list[int] = []
    matched = _seconds(lambda text: found.append(tree.match(text)), order)
    assert min(found) >= TEXT_TOKENS - PAGE_TOKENS, "a text that was inserted is not found"
    missed = _seconds(tree.match, strangers)
    portions = 32
    evicted = _seconds(tree.evict, [TEXT_TOKENS] * portions)
    return {
        "prepare from a list, ns a token": 1e9 * prepared / total,
        "insert, ns a token": 1e9 * inserted / total,
        "match, ns a token": 1e9 * matched / total,
        "match of 2048 tokens, µs": 1e6 * matched / len(texts),
        "miss of 2048 tokens, µs": 1e6 * missed / len(strangers),
        "evict, ns a token": 1e9 * evicted / (portions * TEXT_TOKENS),
        "evict 2048 tokens, µs": 1e6 * evicted / portions,
    }


def samebits_tree() -> Tree:
    """Our prefix cache with room for a million tokens and the texts' own pages."""
    pool = PagePool(2 * CACHED_TOKENS // PAGE_TOKENS)
    cache = PrefixCache(pool, PAGE_TOKENS)

    def prepare(tokens: list[int]) -> list[bytes]:
        return page_keys(token_data(tokens), PAGE_TOKENS, len(tokens) // PAGE_TOKENS)

    def insert(keys: list[bytes]) -> None:
        path = cache.match(cache.root(), keys, 0, len(keys))
        cache.enter(path)
        pages = pool.allocate(len(keys) - len(path))
        node = path[-1] if path else cache.root()
        for key, page in zip(keys[len(path) :], pages, strict=True):
            node = cache.insert(node, key, page)
        cache.leave(node)
        pool.release([one.page for one in path])
        pool.release(pages)

    def match(keys: list[bytes]) -> int:
        return len(cache.match(cache.root(), keys, 0, len(keys))) * PAGE_TOKENS

    return Tree("samebits", prepare, insert, match, lambda tokens: _evict(cache, tokens))


def _evict(cache: PrefixCache, tokens: int) -> None:
    assert cache.evict(tokens // PAGE_TOKENS) == tokens // PAGE_TOKENS


def peer_tree(checkout: Path) -> Tree:
    """mini-sglang's radix cache on CPU tensors, imported from a checkout of its repository. Its comparison of two
    keys is a compiled extension; numpy's stands in for it."""
    cache = _peer_cache(checkout)
    slots = count()

    def insert(tokens: torch.Tensor) -> None:
        indices = torch.arange(len(tokens), dtype=torch.int32) + next(slots) * TEXT_TOKENS
        handle = cache.match_prefix(tokens).cuda_handle
        cache.lock_handle(handle)
        cache.insert_prefix(tokens, indices)
        cache.lock_handle(handle, unlock=True)

    def match(tokens: torch.Tensor) -> int:
        return int(cache.match_prefix(tokens).cuda_handle.cached_len)

    return Tree(
        "mini-sglang",
        lambda tokens: torch.frombuffer(array("i", tokens), dtype=torch.int32),
        insert,
        match,
        lambda tokens: cache.evict(tokens),
    )


def _peer_cache(checkout: Path) -> Any:
    package = checkout / "python" / "minisgl"
    if not (package / "kvcache" / "radix_cache.py").exists():
        raise ConfigError(f"--peer {checkout}: no python/minisgl/kvcache/radix_cache.py in there")
    stand_ins: dict[str, dict[str, Any]] = {
        "minisgl": {"__path__": [str(package)]},
        "minisgl.kvcache": {"__path__": [str(package / "kvcache")]},
        "minisgl.core": {"get_global_ctx": lambda: _Context},
        "minisgl.utils": {"align_down": lambda length, size: length // size * size},
        "minisgl.kernel": {"fast_compare_key": _common_length},
    }
    for name, members in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    return importlib.import_module("minisgl.kvcache.radix_cache").RadixPrefixCache(torch.device("cpu"))


class _Context:
    page_size = PAGE_TOKENS


def _common_length(one: torch.Tensor, other: torch.Tensor) -> int:
    length = min(len(one), len(other))
    different = one.numpy()[:length] != other.numpy()[:length]
    first = int(np.argmax(different))
    return first if different[first] else length


def _texts(source: random.Random, number: int) -> list[list[int]]:
    """Texts that share their first half in groups, in mixed order."""
    texts = []
    for _ in range(number // TEXTS_A_STEM):
        stem = _tokens(source, TEXT_TOKENS // 2)
        texts += [stem + _tokens(source, TEXT_TOKENS // 2) for _ in range(TEXTS_A_STEM)]
    source.shuffle(texts)
    return texts


def _tokens(source: random.Random, number: int) -> list[int]:
    return [source.randrange(VOCABULARY) for _ in range(number)]


def _seconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    start = time.process_time()
    for item in items:
        work(item)
    return time.process_time() - start
