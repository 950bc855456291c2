"""The intermediate representation of every kernel, before any processor is known: `python kernel_ir.py folder share`.

A program of its own, because numba reads its settings once: with NUMBA_OPT=0, no pass has yet looked at this
machine's registers. Writes `folder/name.ll` for each task of a share.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba.core.ccallback import CFunc

from samebits.numerics.cpu import attention, elementwise, gemm, keyvalue, noise, norm, sampling, top
from samebits.numerics.cpu.arrays import float32_array, int32_array
from samebits.numerics.cpu.kernel import COMPILE_OPTIONS, TASK_SIGNATURE, Kernel
from samebits.numerics.cpu.lanes import larger, load, load_float, load_int64, splat, store, store_float
from samebits.numerics.cpu.math import exp32, log1p32, log32

# Only so that the host's code generator knows every instruction; the text holds nothing of it.
GENERATOR = {"NUMBA_OPT": "0", "NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
ZERO = np.float32(0.0)


def math_task(arguments, index):
    """exp(x), log|x|, log1p|x| of lanes, the same of single values, and the noise of x's bits.

    Arguments: x, y [7, count], count (a multiple of 16).
    """
    x, y, count = load_int64(arguments, 0), load_int64(arguments, 1), load_int64(arguments, 2)
    zero = splat(ZERO)
    for i in range(0, count, 16):
        value = load(x, i)
        magnitude = larger(value, zero - value)
        store(y, i, exp32(value))
        store(y, count + i, log32(magnitude))
        store(y, 2 * count + i, log1p32(magnitude))
    for i in range(count):
        one = load_float(x, i)
        magnitude = larger(one, ZERO - one)
        store_float(y, 3 * count + i, exp32(one))
        store_float(y, 4 * count + i, log32(magnitude))
        store_float(y, 5 * count + i, log1p32(magnitude))
    words = int32_array(arguments, 0, count).view(np.uint32)
    noise.noise_of_words(words, float32_array(arguments, 1, 7 * count)[6 * count :])


KERNELS: dict[str, Kernel] = {
    "sampling": sampling.SAMPLE,
    "top tokens": top.TOP_TOKENS,
    "token logprobs": top.TOKEN_LOGPROBS,
    **{f"gemm {storage}": kernel for storage, kernel in gemm.KERNELS.items()},
    **{f"embed {storage}": kernel for storage, kernel in elementwise.EMBED.items()},
    "norm": norm.RMS_NORM,
    "rope and store": keyvalue.NORM_ROPE_STORE,
    "attention": attention.ATTENTION,
    "attention fold": attention.ATTENTION_FOLD,
    "gated activation": elementwise.SILU_MUL,
    "log-sum-exp": elementwise.LOG_SUM_EXP,
}
TASKS: dict[str, Callable] = {name: kernel.function for name, kernel in KERNELS.items()} | {"math": math_task}
SHARES = {"sampling": ["sampling"], "others": [name for name in TASKS if name != "sampling"]}
"""What two processes compile: one kernel is as large as all others together."""


def compiled_task(function: Callable) -> CFunc:
    """A task compiled in this process, past any cache."""
    callback = CFunc(function, TASK_SIGNATURE, locals={}, options=dict(COMPILE_OPTIONS))
    callback.compile()
    return callback


@functools.cache
def math_on_host() -> CFunc:
    """The host's code of `math_task`."""
    return compiled_task(math_task)


def host_addresses() -> dict[str, int]:
    """Address of the host's code of every task, by name."""
    return {name: kernel.address for name, kernel in KERNELS.items()} | {"math": math_on_host().address}


def kernel_modules(folder: Path) -> dict[str, str]:
    """Unoptimised module text of every task, by name."""
    children = [
        subprocess.Popen(
            [sys.executable, __file__, os.fspath(folder), share],
            env={**os.environ, **GENERATOR, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for share in SHARES
    ]
    for child in children:
        errors = child.communicate(timeout=500)[1]
        if child.returncode:
            raise RuntimeError(f"compiling kernels to intermediate representation failed:\n{errors}")
    return {name: (folder / f"{name}.ll").read_text() for name in TASKS}


if __name__ == "__main__":
    for task_name in SHARES[sys.argv[2]]:
        text = compiled_task(TASKS[task_name])._library.get_llvm_str()
        (Path(sys.argv[1]) / f"{task_name}.ll").write_text(text)
