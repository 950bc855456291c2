"""Muon for the matrices, AdamW for embedding and norms, one learning rate for both."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

DECAY = 0.3


def orthogonal(batch: Tensor) -> Tensor:
    """Bring each matrix of a batch near its closest orthogonal one (Newton-Schulz, 5 steps)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = batch.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    """Momentum whose update is made orthogonal; matrices of one size are handled together."""

    def __init__(self, matrices: list[nn.Parameter], momentum: float = 0.95, decay: float = DECAY) -> None:
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            groups[(min(matrix.shape), max(matrix.shape))].append(matrix)
        self.groups = list(groups.values())
        self.momentum, self.decay = momentum, decay
        self.buffers = [torch.zeros_like(self.wide(group, group)) for group in self.groups]
        self.orthogonal = torch.compile(orthogonal)

    @staticmethod
    def wide(group: list[nn.Parameter], tensors: list[Any]) -> Tensor:
        """Stack a group's tensors, each turned so that it is wider than tall."""
        turned = [t.mT if p.shape[0] > p.shape[1] else t for p, t in zip(group, tensors, strict=True)]
        return torch.stack(turned).detach()

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply one update."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = self.wide(group, [p.grad for p in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = self.orthogonal(gradient.lerp(buffer, self.momentum)).float()
            scale = rate * 0.2 * max(group[0].shape) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - rate * self.decay)
                parameter.sub_(change.mT if parameter.shape[0] > parameter.shape[1] else change, alpha=scale)


class Optimizer:
    """Both optimizers behind one step."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        embedding = [p for n, p in named if "embed" in n]
        norms = [p for n, p in named if p.ndim == 1]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            [{"params": embedding, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}],
            betas=(0.9, 0.95),
            fused=True,
        )

    def step(self, rate: float) -> None:
        """Apply one update at this learning rate."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.muon.step(rate)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on later."""
        return {"muon": self.muon.buffers, "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for buffer, saved in zip(self.muon.buffers, state["muon"], strict=True):
            buffer.copy_(saved)
        self.adam.load_state_dict(state["adam"])
