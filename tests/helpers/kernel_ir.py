"""The intermediate representation of every kernel, before any processor is known: `python kernel_ir.py folder stage`.

Run as a program, because numba reads its settings once: the caller sets NUMBA_OPT=0, so that no pass has yet
looked at this machine's registers. Writes `folder/name.ll` and prints one `name` a line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from numba.core.ccallback import CFunc

from samebits.numerics.cpu import attention, elementwise, gemm, keyvalue, norm, sampling, top
from samebits.numerics.cpu.kernel import COMPILE_OPTIONS, TASK_SIGNATURE, Kernel

FORWARD: dict[str, Kernel] = {
    **{f"gemm {storage}": kernel for storage, kernel in gemm.KERNELS.items()},
    **{f"embed {storage}": kernel for storage, kernel in elementwise.EMBED.items()},
    "norm": norm.RMS_NORM,
    "rope and store": keyvalue.NORM_ROPE_STORE,
    "attention": attention.ATTENTION,
    "attention fold": attention.ATTENTION_FOLD,
    "gated activation": elementwise.SILU_MUL,
    "log-sum-exp": elementwise.LOG_SUM_EXP,
    "top tokens": top.TOP_TOKENS,
    "token logprobs": top.TOKEN_LOGPROBS,
}
SAMPLING: dict[str, Kernel] = {"sampling": sampling.SAMPLE}
KERNELS = FORWARD | SAMPLING
# Only so that the host's code generator knows every instruction; the text holds nothing of it.
GENERATOR = {"NUMBA_OPT": "0", "NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}


def export(kernels: dict[str, Kernel], folder: Path) -> None:
    """Write the unoptimised module of each kernel."""
    for name, kernel in kernels.items():
        callback = CFunc(kernel.function, TASK_SIGNATURE, locals={}, options=dict(COMPILE_OPTIONS))
        callback.compile()
        (folder / f"{name}.ll").write_text(callback._library.get_llvm_str())


def kernel_modules(folder: Path) -> dict[str, str]:
    """Module text of every kernel by name; two processes share the work."""
    children = [
        subprocess.Popen(
            [sys.executable, __file__, os.fspath(folder), stage],
            env={**os.environ, **GENERATOR, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for stage in ("sampling", "forward")
    ]
    for child in children:
        errors = child.communicate(timeout=500)[1]
        if child.returncode:
            raise RuntimeError(f"compiling kernels to intermediate representation failed:\n{errors}")
    return {name: (folder / f"{name}.ll").read_text() for name in KERNELS}


if __name__ == "__main__":
    export(SAMPLING if sys.argv[2] == "sampling" else FORWARD, Path(sys.argv[1]))
