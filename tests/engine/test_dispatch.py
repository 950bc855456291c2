"""In a step torch only copies and does integer arithmetic (trap 9): every torch operator of a whole step is seen."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.build import build_engine
from samebits.engine.engine import Engine
from samebits.engine.messages import EngineRequest, LogprobOptions
from samebits.sampling_params import ResolvedSampling

COPIES = {
    "_to_copy",
    "alias",
    "arange",
    "as_strided",
    "cat",
    "clone",
    "copy_",
    "detach",
    "empty",
    "empty_like",
    "expand",
    "fill_",
    "full",
    "index",
    "index_put_",
    "index_select",
    "lift_fresh",
    "new_empty",
    "repeat_interleave",
    "reshape",
    "scalar_tensor",
    "select",
    "slice",
    "split",
    "squeeze",
    "t",
    "unsqueeze",
    "view",
    "zero_",
    "zeros",
    "_local_scalar_dense",
}
"""Operators that move values and change none of them."""


class FloatArithmetic(TorchDispatchMode):
    """Collects the operators, copies aside, that give floating-point tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        name = func.overloadpacket.__name__
        outputs = result if isinstance(result, tuple | list) else [result]
        floating = any(isinstance(out, torch.Tensor) and out.is_floating_point() for out in outputs)
        if floating and name not in COPIES:
            self.seen.add(name)
        return result


def run(engine: Engine) -> None:
    for number in range(4):
        engine.submit(
            EngineRequest(
                rid=str(number),
                prompt_ids=[3 + number, 5, 7, 11][: number + 1],
                sampling=ResolvedSampling(
                    temperature=0.0 if number == 1 else 0.8,
                    top_k=20 if number == 2 else 0,
                    top_p=0.9,
                    min_p=0.01,
                    repetition_penalty=1.1,
                    frequency_penalty=0.1,
                    logit_bias={9: 1.0},
                    min_new_tokens=2,
                    max_new_tokens=4,
                ),
                logprobs=LogprobOptions(
                    output=True, prompt_start=0, top=3, token_ids=[1, 2], processed=number == 3
                ),
            )
        )
    while engine.has_work():
        engine.step()
    engine.close()


def float_arithmetic(numerics: str) -> FloatArithmetic:
    model = ModelConfig(model="tiny", load_format="dummy", numerics=numerics)
    engine = build_engine(model, EngineConfig(kv_memory_mib=16, loop="simple"), lambda *news: None)
    with FloatArithmetic() as mode:
        run(engine)
    return mode


def test_a_step_of_the_exact_profile_computes_nothing_with_torch() -> None:
    mode = float_arithmetic("exact")
    assert mode.calls > 20, "the mode saw no operator: the test would pass on anything"
    assert mode.seen == set()


def test_the_torch_profile_is_seen_computing() -> None:
    """The inverse: the same look at plain torch operators finds them."""
    assert {"mm", "addmm", "bmm", "linear"} & float_arithmetic("torch").seen
