"""Norm, rotation and store, activation, embedding, log-sum-exp: the bits of a plain evaluation of their clauses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from check_arithmetic import CPU

from conftest import INTERPRETED
from samebits.numerics import adversarial
from samebits.numerics.contract import CONTRACT
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.gpu import activation, embedding, log_sum_exp, norm, rope_store, rough_silu
from samebits.numerics.gpu.configuration import Launch
from samebits.numerics.operators import HeadLayout

F32 = np.float32
LAUNCHES = [Launch(warps, 1) for warps in (1, 2, 4, 8)]


def folded(lanes: np.ndarray) -> np.ndarray:
    """Halve the last axis until one element is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def inverse_root(x: np.ndarray, eps: float, step: int = 1) -> np.ndarray:
    """1 / sqrt(mean + eps) of the rows of x float32, with the lanes of a GPU. With `step` -1 a lane's elements are
    added from the last one on."""
    count = CONTRACT.device_reduction_lanes
    padded = np.zeros((x.shape[0], -(-x.shape[1] // count) * count), F32)
    padded[:, : x.shape[1]] = x
    lanes = np.zeros((x.shape[0], count), F32)
    for part in np.split(padded, padded.shape[1] // count, axis=1)[::step]:
        wide = part.astype(np.longdouble) * part + lanes
        lanes = wide.astype(F32)
    return F32(1) / np.sqrt(folded(lanes) / F32(x.shape[1]) + F32(eps))


def show_order(x: torch.Tensor, residual: torch.Tensor) -> None:
    """Make a row of which the order of a lane's elements shows: a large one hides each small one that follows it, and
    not their sum."""
    x.fill_(2.0**-9)
    residual.zero_()
    x[3 :: CONTRACT.device_reduction_lanes] = 1.0
    x[3] = 4096.0


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = {4: torch.int32, 2: torch.int16}[a.element_size()]
    return torch.equal(a.cpu().view(kind), b.cpu().view(kind))


def rows_of(seed: int, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return adversarial.wide_rows(seed, rows, width, 3).to(dtype)


@pytest.mark.parametrize("width", [16, 896, 1024, 2560, 5120])
def check_norm(width: int, device: torch.device, dtypes: list[torch.dtype]) -> None:
    for dtype in dtypes:
        x, residual = rows_of(1, 3, width, dtype), rows_of(2, 3, width, dtype)
        show_order(x[1], residual[1])
        weight = (torch.arange(width) % 13 / 7 + 0.1).to(dtype)
        total = (x.float() + residual.float()).to(dtype)
        for value, added in ((x, False), (total, True)):
            wide = value.float().numpy()
            expected = weight.float().numpy() * (wide * inverse_root(wide, 1e-6)[:, None])
            if dtype is torch.float32 and width > CONTRACT.device_reduction_lanes:
                assert inverse_root(wide, 1e-6)[1] != inverse_root(wide, 1e-6, step=-1)[1]
            for launch in LAUNCHES:
                given = x.to(device), weight.to(device)
                if added:
                    y, kept = norm.add_rms_norm(given[0], residual.to(device), given[1], 1e-6, launch=launch)
                    assert same_bits(kept, total)
                else:
                    y = norm.rms_norm(*given, 1e-6, launch=launch)
                assert same_bits(y, torch.from_numpy(expected).to(dtype)), (dtype, added, launch)


def check_norm_of_many_rows(
    device: torch.device, dtypes: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's bits do not depend on how many there are."""
    monkeypatch.setattr(norm, "MANY_ROWS", 6)
    monkeypatch.setattr(norm, "PREFILL_ROWS", 12)
    width = 1536
    for dtype in dtypes:
        x, residual = (rows_of(seed, 3, width, dtype).to(device) for seed in (1, 2))
        weight = (torch.arange(width) % 13 / 7 + 0.1).to(dtype).to(device)
        alone = norm.add_rms_norm(x, residual, weight, 1e-6)
        for times in (2, 4):
            many = norm.add_rms_norm(x.repeat(times, 1), residual.repeat(times, 1), weight, 1e-6)
            for one, other in zip(alone, many, strict=True):
                assert same_bits(one.repeat(times, 1), other), (dtype, times)
            assert not same_bits(many[0][:3], many[0][1:4])


def rotated(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """x float32 [rows, heads, D], cosine and sine [rows, half]."""
    half = cosine.shape[1]
    c, s = cosine[:, None], sine[:, None]
    low, high = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([low * c - high * s, high * c + low * s, x[..., 2 * half :]], -1)


@pytest.mark.parametrize("many", [5, 6])
@pytest.mark.parametrize(
    ("normed", "head_dim", "half"), [(True, 128, 64), (False, 64, 32), (True, 48, 16), (True, 64, 24)]
)
def check_rope_store(
    normed: bool,
    head_dim: int,
    half: int,
    many: int,
    device: torch.device,
    dtypes: list[torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rope_store, "MANY_ROWS", many)
    heads, rows, page = HeadLayout(10, 2, head_dim), 5, 64
    positions = torch.tensor([0, 7, 3, 99, 50])
    slots = torch.tensor([64, 1, 130, 5, 191])
    angles = torch.randn(100, half, generator=torch.Generator().manual_seed(1))
    rope = torch.stack([angles.cos(), angles.sin()], 1).contiguous()
    for dtype in dtypes:
        qkv = torch.randn(rows, 14 * head_dim, generator=torch.Generator().manual_seed(2)).to(dtype)
        qkv[2, 12 * head_dim + 5] = float("nan")
        qkv[4, 11 * head_dim + 1] = float("inf")
        weights = [(torch.arange(head_dim) % k / 5 + 0.2).to(dtype) for k in (7, 11)]
        keys = torch.full((4, 2, page, head_dim), 7.0, dtype=dtype)
        values, faults = keys.clone(), torch.zeros(rows, dtype=torch.uint8)
        x = qkv.float().numpy().reshape(rows, 14, head_dim)
        parts = [x[:, :10], x[:, 10:12]]
        if normed:
            for index, weight in enumerate(weights):
                flat = parts[index].reshape(-1, head_dim)
                scaled = weight.float().numpy() * (flat * inverse_root(flat, 1e-5)[:, None])
                parts[index] = scaled.reshape(parts[index].shape)
        table = rope.numpy()[positions.numpy()]
        query, key = (rotated(part, table[:, 0], table[:, 1]) for part in parts)
        key, value = np.array(key), np.array(x[:, 12:])
        key[[2, 4]], value[[2, 4]] = 0.0, 0.0
        moved = [tensor.to(device) for tensor in (keys, values, faults)]
        got = rope_store.norm_rope_store(
            qkv.to(device),
            heads,
            weights[0].to(device) if normed else None,
            weights[1].to(device) if normed else None,
            1e-5,
            rope.to(device),
            positions.to(device),
            slots.to(device),
            moved[2],
            moved[0],
            moved[1],
        )
        for row, slot in enumerate(slots.tolist()):
            keys[slot // page, :, slot % page] = torch.from_numpy(key[row]).to(dtype)
            values[slot // page, :, slot % page] = torch.from_numpy(value[row]).to(dtype)
        assert same_bits(got, torch.from_numpy(query).to(dtype))
        assert same_bits(moved[0], keys) and same_bits(moved[1], values)
        assert moved[2].tolist() == [0, 0, 1, 0, 1]


@pytest.mark.skipif(INTERPRETED, reason="estimates are the device's own")
def check_rough_activation(device: torch.device) -> None:
    """Every gate with many ups: by estimates as without them; and the bound of their error."""
    errors = rough_silu.estimate_errors(device)
    assert 0 < int(errors.max()) <= rough_silu.ROUGHNESS
    assert activation.estimates_serve(torch.bfloat16, device)
    assert not activation.estimates_serve(torch.float16, device)
    few = activation.MANY_ROWS // 2
    for seed in range(100, 164):
        pairs = rough_silu.pairs_of_all_gates(seed, 64, device)
        assert pairs.shape[0] == 2 * few
        rough = activation.silu_mul(pairs)
        exact = torch.cat([activation.silu_mul(part.contiguous()) for part in pairs.split(few)])
        assert same_bits(rough, exact), seed
    # The inverse: estimates alone round otherwise somewhere.
    gate, up = pairs.float().nan_to_num().split(64, 1)
    alone = (gate * torch.sigmoid(gate) * up).bfloat16()
    assert not same_bits(alone, exact)


def check_activation(device: torch.device, dtypes: list[torch.dtype]) -> None:
    for dtype in dtypes:
        x = rows_of(3, 4, 2 * 1100, dtype)
        gate, up = x.float().numpy()[:, :1100], x.float().numpy()[:, 1100:]
        exponential = CPU[0](np.ascontiguousarray(-gate).reshape(-1)).reshape(gate.shape)
        expected = gate / (F32(1) + exponential) * up
        assert same_bits(activation.silu_mul(x.to(device)), torch.from_numpy(expected).to(dtype))


def check_embedding(device: torch.device, dtypes: list[torch.dtype]) -> None:
    for dtype in dtypes:
        table = rows_of(4, 50, 1100, dtype)
        ids = torch.tensor([3, 49, 0, 3])
        assert same_bits(embedding.embed(ids.to(device), table.to(device)), table[ids])


def check_log_sum_exp(device: torch.device) -> None:
    logits = torch.cat([adversarial.wide_rows(5, 4, 3000, 2), torch.full((2, 3000), -float("inf"))])
    # Two terms that 1 hides one by one, and not when they are added to each other first, as the fold does.
    logits[4, 0], logits[4, 1], logits[4, 513] = 0.0, -16.92, -16.92
    # In blocks after that of the 1, which are folded in ascending order, it hides both.
    logits[5, 0], logits[5, 1024], logits[5, 2048] = 0.0, -16.92, -16.92
    logits[1] = -float("inf")
    logits[2, 1000:] = -float("inf")
    x = logits.numpy()
    expected = []
    for row in x:
        top, total = -F32(np.inf), F32(0)
        for start in range(0, 3000, 1024):
            block = np.full(1024, -np.inf, F32)
            block[: len(row[start : start + 1024])] = row[start : start + 1024]
            best = block.max()
            part = folded(CPU[0](block - (best if best > -np.inf else F32(0))))
            joint = max(top, best)
            base = joint if joint > -np.inf else F32(0)
            keep, take = CPU[0](np.array([top - base, best - base], F32))
            total = F32(np.longdouble(total) * np.longdouble(keep) + np.longdouble(part * take))
            top = joint
        expected.append(top + CPU[1](np.array([total], F32))[0])
    assert expected[4] > 0
    assert expected[5] == 0
    lse = log_sum_exp.log_sum_exp(logits.to(device))
    assert same_bits(lse, torch.tensor(np.array(expected, F32)))
    right = torch.logsumexp(logits.double(), 1)
    assert torch.allclose(lse.cpu().double()[[0, 2, 3]], right[[0, 2, 3]], rtol=1e-6, atol=1e-6)
    rows, ids = torch.tensor([0, 3, 3]), torch.tensor([2999, 5, 0])
    got = log_sum_exp.token_logprobs(logits.to(device), lse, rows.to(device), ids.to(device))
    cpu = CpuOperators(1)
    assert same_bits(got, cpu.token_logprobs(logits, lse.cpu(), rows, ids))
    cpu.close()
