"""Train the target, or the draft with the target as its teacher, on one GPU.

The steps are counted, not timed: ``--steps`` with the same seed and data is the same recipe.
``--seconds`` measures a step first and chooses the count that fits; the count is recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.model import SHAPES, Qwen3
from training.optimizer import Optimizer

SHORT, LONG = 1024, 8192
# Share of the rows. The text is small and is read about five times; problems are endless.
MIX = {"problems": 0.76, "docs": 0.035, "code": 0.085, "doc_chat": 0.05, "recall": 0.07}
# Every eighth step, and all of the last ones, have rows of 8,192 tokens.
LONG_EVERY = 8
# How many of a source's rows begin where a document begins.
ALIGNED = {"problems": 1.0, "docs": 0.1, "code": 0.1, "doc_chat": 1.0, "recall": 1.0}
Loss = Callable[[Tensor, Tensor], Tensor]


class Data:
    """All sources in device memory; a batch is a pure function of seed and step."""

    def __init__(self, folder: Path, split: str, device: str) -> None:
        arrays = [np.load(folder / f"{name}.{split}.npz") for name in MIX]
        sizes = [len(a["tokens"]) for a in arrays]
        self.low = torch.tensor(np.cumsum([0, *sizes[:-1]]), device=device)
        self.high = self.low + torch.tensor(sizes, device=device)
        self.tokens = join([a["tokens"].astype(np.int16) for a in arrays]).to(device)
        self.weights = join([a["weights"] for a in arrays]).to(device)
        counts = [len(a["starts"]) for a in arrays]
        self.first = torch.tensor(np.cumsum([0, *counts[:-1]]), device=device)
        self.count = torch.tensor(counts, device=device)
        self.starts = join([a["starts"] for a in arrays]).to(device)
        self.starts += torch.repeat_interleave(self.low, self.count)
        self.aligned = torch.tensor([ALIGNED[name] for name in MIX], device=device)
        self.sizes = dict(zip(MIX, sizes, strict=True))
        self.device = device

    def batch(self, rows: int, length: int, seed: int, shares: list[float]) -> tuple[Tensor, Tensor]:
        """Rows of ``length`` + 1 tokens and their weights."""
        generator = torch.Generator(self.device).manual_seed(seed)
        mix = torch.tensor(shares, device=self.device)
        source = torch.multinomial(mix, rows, replacement=True, generator=generator)
        u = torch.rand((3, rows), device=self.device, generator=generator, dtype=torch.float64)
        low, last = self.low[source], self.high[source] - length - 1
        free = low + (u[0] * (last - low)).long()
        begun = self.starts[self.first[source] + (u[1] * self.count[source]).long()]
        start = torch.where(u[2] < self.aligned[source], torch.minimum(begun, last), free)
        index = start[:, None] + torch.arange(length + 1, device=self.device)
        return self.tokens[index].long(), self.weights[index[:, 1:]].float()


def join(arrays: list[np.ndarray[Any, Any]]) -> Tensor:
    """Concatenate arrays to one tensor."""
    return torch.from_numpy(np.concatenate(arrays))


def make_loss(model: Qwen3, teacher: Qwen3 | None) -> Loss:
    """The weighted cross-entropy, half of it against the teacher's distribution if there is one."""

    def loss(tokens: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens[:, :-1])
            if teacher is not None:
                with torch.no_grad():
                    wanted = teacher(tokens[:, :-1])
        logits = logits.float().flatten(0, 1)
        each = F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
        if teacher is not None:
            soft = wanted.float().flatten(0, 1).softmax(-1)
            each = 0.2 * each - 0.8 * (soft * logits.log_softmax(-1)).sum(-1)
        flat = weights.flatten()
        return (each * flat).sum() / flat.sum()

    return torch.compile(loss, dynamic=False)


@torch.no_grad()
def held_out_losses(model: Qwen3, data: Data) -> dict[str, float]:
    """A quick look at the loss of every source's held-out text, all tokens weighing the same."""
    losses = {}
    for index, name in enumerate(MIX):
        shares = [float(i == index) for i in range(len(MIX))]
        tokens, weights = data.batch(32, SHORT, 5, shares)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens[:, :-1]).float().flatten(0, 1)
        each = F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
        said = weights.flatten() > 1
        losses[name] = round(each[said].mean().item(), 4)
    return losses


def rate_at(step: int, steps: int, peak: float) -> float:
    """Warm-up, then a cosine down to nothing."""
    warm = min(200, steps // 20 + 1)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def measure(loss: Loss, data: Data, length: int, tokens: int, rounds: int = 12) -> float:
    """Seconds for one forward and backward pass, after compilation."""
    begin = 0.0
    for index in range(rounds + 3):
        if index == 3:
            torch.cuda.synchronize()
            begin = time.monotonic()
        loss(*data.batch(tokens // length, length, index, list(MIX.values()))).backward()
    torch.cuda.synchronize()
    return (time.monotonic() - begin) / rounds


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train and return the record of the run."""
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    began = time.monotonic()
    data, held = Data(args.data, "train", "cuda"), Data(args.data, "test", "cuda")
    model = Qwen3(SHAPES[args.model]).cuda()
    teacher = None
    if args.teacher:
        teacher = Qwen3(SHAPES["target"]).cuda().eval().requires_grad_(False)
        teacher.load_state_dict(torch.load(args.teacher, map_location="cuda")["model"])
        # The teacher never changes: its weights stay in the type it computes in.
        for parameter in teacher.parameters():
            if parameter.ndim == 2:
                parameter.data = parameter.data.bfloat16()
    optimizer, loss = Optimizer(model), make_loss(model, teacher)
    times = [measure(loss, data, length, args.batch_tokens) for length in (SHORT, LONG)]
    model.zero_grad(set_to_none=True)
    print(f"ready after {time.monotonic() - began:.0f} s; ms a pass: {[round(t * 1e3, 1) for t in times]}")
    steps = args.steps
    if args.seconds:
        often = args.long + (1 - args.long) / LONG_EVERY
        average = (1 - often) * times[0] + often * times[1] + 0.006
        steps = int((args.seconds - (time.monotonic() - began)) * 0.96 / average)
    switch = int(steps * (1 - args.long))
    step, history = 0, []
    saved = args.out / "state.pt"
    if args.resume and saved.exists():
        state = torch.load(saved, map_location="cuda")
        model.load_state_dict(state["model"])
        optimizer.load(state["optimizer"])
        step, steps, switch = state["step"], state["steps"], state["switch"]
    begun, running = time.monotonic(), torch.zeros((), device="cuda")
    while step < steps:
        length = LONG if step >= switch or step % LONG_EVERY == 0 else SHORT
        seed = args.seed * 1_000_003 + step
        tokens, weights = data.batch(args.batch_tokens // length, length, seed, list(MIX.values()))
        value = loss(tokens, weights)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate_at(step, steps, args.rate))
        model.zero_grad(set_to_none=True)
        running += value.detach()
        step += 1
        if step % 250 == 0 or step == steps:
            entry: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - begun, 1)}
            entry["loss"] = round(running.item() / (step % 250 or 250), 4)
            entry["held_out"] = held_out_losses(model, held)
            running.zero_()
            history.append(entry)
            print(json.dumps(entry), flush=True)
            if not math.isfinite(entry["loss"]):
                raise FloatingPointError("the loss is not finite")
        if step % args.save_every == 0 or step == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state()}
            torch.save({**state, "step": step, "steps": steps, "switch": switch}, saved)
    return {
        "model": args.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "teacher": bool(args.teacher),
        "steps": steps,
        "steps_of_8192": sum(s >= switch or s % LONG_EVERY == 0 for s in range(steps)),
        "batch_tokens": args.batch_tokens,
        "tokens": steps * args.batch_tokens,
        "seed": args.seed,
        "peak_rate": args.rate,
        "training_seconds": round(time.monotonic() - begun, 1),
        "milliseconds_a_pass": [round(t * 1e3, 2) for t in times],
        "mix": MIX,
        "source_tokens": data.sizes,
        "device": torch.cuda.get_device_name(),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "history": history,
    }


def main() -> None:
    """Train one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(SHAPES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for state.pt and run.json")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seconds", type=float, help="choose the number of steps to fit this time")
    parser.add_argument(
        "--long", type=float, default=0.08, help="share of steps at the end with 8,192-token rows"
    )
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--teacher", type=Path, help="state.pt of the target")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    record = train(args)
    (args.out / "run.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
