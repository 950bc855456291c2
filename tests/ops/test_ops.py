"""The public batch-invariant operators on CPU, and torch's functions served by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from samebits import ops
from samebits.errors import NumericsError

X = torch.randn(40, 48, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.randn(32, 48, generator=torch.Generator().manual_seed(2))
FUNCTIONS = {
    "linear": lambda x: ops.linear(x, WEIGHT.to(x.dtype), WEIGHT[:, 0].to(x.dtype)),
    "mm": lambda x: ops.mm(x, WEIGHT.T.to(x.dtype)),
    "bmm": lambda x: ops.bmm(x[None], WEIGHT.T.to(x.dtype)[None])[0],
    "mean": ops.mean,
    "log_softmax": ops.log_softmax,
    "rms_norm": lambda x: ops.rms_norm(x, WEIGHT[0].to(x.dtype)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_knows_no_neighbour(name: str, dtype: torch.dtype) -> None:
    function, x = FUNCTIONS[name], X.to(dtype)
    whole = function(x)
    for rows in (1, 7, 39):
        assert torch.equal(function(x[-rows:]), whole[-rows:])
    assert not torch.equal(whole[0], whole[1])


def test_results_are_near_float64() -> None:
    x, weight = X.double(), WEIGHT.double()
    assert torch.allclose(ops.mm(X, WEIGHT.T).double(), x @ weight.T, atol=1e-4)
    assert torch.allclose(ops.log_softmax(X, 0).double(), x.log_softmax(0), atol=1e-5)
    assert torch.allclose(ops.mean(X, 0).double(), x.mean(0), atol=1e-6)
    assert torch.allclose(ops.mean(X, (0, 1), keepdim=True).double(), x.mean((0, 1), True), atol=1e-6)
    norm = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight[0]
    assert torch.allclose(ops.rms_norm(X, WEIGHT[0]).double(), norm, atol=1e-5)


def test_torch_functions_are_served_within_the_context() -> None:
    layer = torch.nn.Linear(48, 32)
    with torch.no_grad(), ops.BatchInvariant():
        served = {
            "mm": (torch.mm(X, WEIGHT.T), ops.mm(X, WEIGHT.T)),
            "matmul": (X @ WEIGHT.T, ops.mm(X, WEIGHT.T)),
            "layer": (layer(X), ops.linear(X, layer.weight, layer.bias)),
            "bmm": (torch.bmm(X[None], WEIGHT.T[None]), ops.bmm(X[None], WEIGHT.T[None])),
            "mean": (X.mean(0), ops.mean(X, 0)),
            "log_softmax": (torch.log_softmax(X, -1), ops.log_softmax(X)),
        }
    for name, (by_torch, by_name) in served.items():
        assert torch.equal(by_torch, by_name.view(by_torch.shape)), name
    outside = torch.randn(300, 4096) @ torch.randn(4096, 300)
    assert outside.shape == (300, 300)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_made_of_served_functions_is_served(mode: Callable[[], Any]) -> None:
    """Inference mode hands these over whole, and not what they are made of."""
    x = torch.randn(40, 2048, generator=torch.Generator().manual_seed(3))
    weight, bias = torch.randn(32, 2048, generator=torch.Generator().manual_seed(4)), WEIGHT[:, 0]
    y = ops.mm(x, weight.T)
    with mode(), ops.BatchInvariant():
        served = {
            "linear": (torch.nn.functional.linear(x, weight, bias), ops.linear(x, weight, bias)),
            "linear of one row": (torch.nn.functional.linear(x[3], weight), y[3]),
            "matmul": (x @ weight.T, y),
            "matrix times vector": (x @ weight[0], y[:, 0]),
            "vector times vector": (x[0] @ weight[0], y[0, 0]),
            "einsum": (torch.einsum("bi,oi->bo", x, weight), y),
            "into out": (torch.mm(x, weight.T, out=torch.empty(0)), y),
            "log_softmax": (torch.nn.functional.log_softmax(x, -1), ops.log_softmax(x)),
        }
    for name, (by_torch, by_name) in served.items():
        assert torch.equal(by_torch, by_name), name
    with mode():
        assert not torch.equal(x @ weight.T, y), "torch has these bits by itself"


class Wrapped(torch.Tensor):
    """Stands for a tensor that it holds, as tensors that are spread over devices do; has no memory of its own."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=held.device
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [one.held if isinstance(one, Wrapped) else one for one in args]
        return Wrapped(func(*plain, **(kwargs or {})))


def test_what_a_subclass_is_made_of_is_served() -> None:
    with torch.no_grad(), ops.BatchInvariant():
        product = torch.mm(Wrapped(X), WEIGHT.T)
    assert isinstance(product, Wrapped)
    assert torch.equal(product.held, ops.mm(X, WEIGHT.T))


def test_other_layouts_stay_with_torch() -> None:
    sparse = torch.eye(48).to_sparse()
    expected = torch.mm(sparse, WEIGHT.T)
    with torch.no_grad(), ops.BatchInvariant():
        assert torch.equal(torch.mm(sparse, WEIGHT.T), expected)
        assert torch.mm(X.to("meta"), WEIGHT.T.to("meta")).shape == (40, 32)


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_results_are_not_converted_to_the_type_of_out(kind: torch.dtype) -> None:
    x, weight = X.bfloat16(), WEIGHT.bfloat16()
    with torch.no_grad(), ops.BatchInvariant(), pytest.raises(NumericsError, match="out is torch"):
        torch.mm(x, weight.T, out=torch.empty(40, 32, dtype=kind))
    with (
        torch.no_grad(),
        ops.BatchInvariant(),
        pytest.raises(NumericsError, match=r"does not serve aten\.mm"),
    ):
        torch.mm(x, weight.T, out_dtype=torch.float32)


def test_a_gpu_that_is_not_the_current_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch there would read the memory of another card, ahead of what was asked of that card."""

    def use(device: int, current: int, words: str) -> None:
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        with FakeTensorMode():
            x = torch.empty(2, 48, device=f"cuda:{device}")
            with pytest.raises(NumericsError, match=words):
                ops.linear(x, x)

    ops._gpu_of_kernels.cache_clear()
    use(1, 0, r"current device, cuda:0, .* on cuda:1: use torch.cuda.set_device\(1\)")
    use(1, 1, "none of its own")  # the advice was taken: what is refused now is a tensor without values
    use(0, 0, "kernels of this process on cuda:1")
    ops._gpu_of_kernels.cache_clear()


def test_nothing_in_nothing_out() -> None:
    with torch.no_grad(), ops.BatchInvariant():
        assert (X[:0] @ WEIGHT.T).shape == (0, 32)
        assert (X @ WEIGHT[:0].T).shape == (40, 0)
        assert X[:0].mean(-1).shape == (0,)
        assert X[:, :0].log_softmax(-1).shape == (40, 0)
        assert ops.rms_norm(X[:0], WEIGHT[0]).shape == (0, 48)


def test_other_operators_and_types_stay_with_torch() -> None:
    with ops.BatchInvariant():
        assert torch.equal(
            torch.arange(6).view(2, 3) @ torch.ones(3, 1, dtype=torch.int64), torch.tensor([[3], [12]])
        )
        assert torch.equal(torch.softmax(torch.zeros(1, 2), -1), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.mm(X, WEIGHT), "does not fit"),
        (lambda: ops.linear(X, WEIGHT.half()), "alike on one device"),
        (lambda: ops.rms_norm(X, WEIGHT[0, :3]), "48 wide"),
        (lambda: ops.mm(X.requires_grad_(False).clone().requires_grad_(), WEIGHT.T), "no gradients"),
        (lambda: ops.mean(X.to(torch.float64)), "bf16, fp16 or fp32"),
        (lambda: ops.bmm(X, WEIGHT), "two batches"),
        (lambda: ops.mean(X, 2), "dim 2 is none of the 2"),
        (lambda: ops.log_softmax(X, -3), "dim -3 is none of the 2"),
        (lambda: ops.mean(X[:, :0]), "no mean of no elements"),
        (lambda: ops.linear(X[:, :0], WEIGHT[:, :0]), "does not fit"),
        (lambda: ops.linear(torch._neg_view(X), WEIGHT), "resolve_neg"),
        (lambda: ops.linear(X, WEIGHT, WEIGHT[:3, 0]), "bias .3. does not fit"),
        (lambda: ops.linear(X, WEIGHT, WEIGHT[:1, :32]), "bias .1, 32. does not fit"),
        (lambda: ops.mm(torch._efficientzerotensor((3, 48)), WEIGHT.T), "none of its own"),
        (lambda: ops.rms_norm(Wrapped(X), WEIGHT[0]), "none of its own"),
        (lambda: torch.vmap(lambda x: ops.linear(x, WEIGHT))(X), "none of its own"),
    ],
)
def test_what_does_not_fit_is_refused(call, words: str) -> None:
    with pytest.raises(NumericsError, match=words):
        call()
