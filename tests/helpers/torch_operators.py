"""Operators beside torch's own functions in float64; for tests that have made sure of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import tvm_conv3d.torch as ours

LAST = torch.channels_last_3d

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

#: What sums in float32, or float64, may be off by, relative to the largest element; half types are rounded once more.
_SUMS = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def orders(x: Any) -> Iterator[Any]:
    """`x` in all orders of memory."""
    yield x.contiguous()
    yield x.contiguous(memory_format=LAST)
    yield x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    # every other cell of a larger tensor
    wide = torch.randn(*x.shape[:3], 2 * x.shape[3], x.shape[4] + 3).to(x.dtype)
    part = wide[:, :, :, ::2, 2:-1]
    part.copy_(x)
    yield part
    backwards = x.neg().contiguous(memory_format=LAST)
    yield torch._neg_view(backwards)


def check(result: Any, wanted: Any, exact: bool = False) -> None:
    """A result beside torch's of float64: its numbers, NaN and infinities, and the order of its memory."""
    assert result.shape == wanted.shape
    assert result.is_contiguous(memory_format=LAST)
    if exact:
        assert torch.equal(result.double().nan_to_num(nan=1234.5), wanted.nan_to_num(nan=1234.5))
        return
    finite = wanted.isfinite()
    torch.testing.assert_close(result.double()[~finite], wanted[~finite], equal_nan=True)
    largest = wanted[finite].abs().max().item() if finite.any() else 0.0
    torch.testing.assert_close(result.double()[finite], wanted[finite], rtol=0, atol=_SUMS[result.dtype] * largest)


def all_ours(count: int) -> bool:
    return ours.counters() == ours.Counters(count, {})


def by_torch(*words: str) -> bool:
    """Whether torch computed, for one reason with these words."""
    found = ours.counters()
    return found.ours == 0 and len(found.torch) == 1 and all(word in next(iter(found.torch)) for word in words)


def check_compiled(operator: Any, arguments: Any) -> None:
    """Compiled without a break, at another size and in another order of memory too, with the gradient."""
    torch.compiler.reset()
    compiled = torch.compile(lambda x: operator(x, *arguments), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 5, 6, 7)
    for each in (x, x.to(memory_format=LAST), torch.randn(3, 4, 9, 8, 7)):
        torch.testing.assert_close(compiled(each), operator(each, *arguments))
    x.requires_grad_()
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(operator(x, *arguments).sum(), x)[0])
    torch.compiler.reset()
