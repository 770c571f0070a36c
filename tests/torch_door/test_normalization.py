"""Normalizations as operators of torch: numbers by float64, orders of memory, in place, and what torch computes."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d  # noqa: E402
import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from normalizations import BOUNDS, KINDS, PLAIN, close, exact, vectors  # noqa: E402
from sampling import sampled  # noqa: E402
from tvm_conv3d.torch.operators.normalization import NORMALIZATION, NORMALIZATION_  # noqa: E402

F = torch.nn.functional
LAST = torch.channels_last_3d

#: Chains of post-ops with their formulas in float64.
CHAINS: dict[tuple[str, ...], Any] = {
    (): lambda y, r, s: y,
    ("relu",): lambda y, r, s: y.relu(),
    ("leaky_relu:0.01",): lambda y, r, s: F.leaky_relu(y, 0.01),
    ("add", "relu"): lambda y, r, s: (y + r).relu(),
    ("silu", "add"): lambda y, r, s: F.silu(y) + r,
    ("prelu",): lambda y, r, s: torch.where(y < 0, s * y, y),
    ("add", "prelu", "tanh"): lambda y, r, s: torch.where(y + r < 0, s * (y + r), y + r).tanh(),
}


def operands(x: Any, post_ops: tuple[str, ...]) -> tuple[Any, Any, list[str]]:
    """Residual operand, slope and chain."""
    residual = torch.randn(x.shape).to(x.dtype) if "add" in post_ops else None
    slope = torch.tensor([0.3], dtype=x.dtype) if "prelu" in post_ops else None
    return residual, slope, list(post_ops)


def check(x: Any, groups: int | None, four: list[Any], post_ops: tuple[str, ...] = (), epsilon: float = 1e-5) -> Any:
    """Both operators against float64; the result of the first."""
    residual, slope, chain = operands(x, post_ops)
    wanted = CHAINS[post_ops](
        exact(x, groups, epsilon, *four), *(None if t is None else t.double() for t in (residual, slope))
    )
    arguments = (groups or 1, *four, epsilon, residual, slope, chain)
    before = x.clone()
    result = NORMALIZATION(x, *arguments)
    assert result.dtype == x.dtype and torch.equal(x, before)
    assert result.is_contiguous(memory_format=LAST)
    close(result, wanted, BOUNDS[x.dtype])
    inside = x.clone()
    NORMALIZATION_(inside, *arguments)
    assert torch.equal(inside, result)
    return result


# Numbers

GRID = [
    (kind, channels, size, batch)
    for kind, channels, size, batch in product(
        KINDS,
        (1, 3, 7, 8, 16, 20, 32, 320),
        ((1, 1, 1), (1, 5, 1), (3, 3, 3), (6, 6, 6), (12, 12, 12), (33, 33, 33)),
        (1, 3),
    )
    # of one position there is no instance norm, and of one element no norm at all
    if not (size == (1, 1, 1) and (KINDS[kind](channels) == channels or channels == 1))
    and channels * np.prod(size) * batch < 4e6
]


@pytest.mark.parametrize(("kind", "channels", "size", "batch"), sampled(GRID, 5))
def test_numbers(kind: str, channels: int, size: tuple[int, ...], batch: int) -> None:
    x = torch.randn(batch, channels, *size).to(memory_format=LAST)
    given = kind == "given"
    check(x, KINDS[kind](channels), vectors(channels, given))
    check(x, KINDS[kind](channels), vectors(channels, given, affine=False), ("leaky_relu:0.01",))
    assert ours.counters() == ours.Counters(4, {})


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    x = torch.randn(2, 24, 20, 21, 22).to(memory_format=LAST)
    arguments = (8, *vectors(24, False), 1e-5, None, None, ["relu"])
    tvm_conv3d.set_num_threads(1)
    wanted = NORMALIZATION(x, *arguments)
    tvm_conv3d.set_num_threads(threads)
    assert torch.equal(NORMALIZATION(x, *arguments), wanted)
    close(wanted, exact(x, 8, 1e-5, *arguments[1:5]).relu())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_element_types(kind: str, dtype: Any) -> None:
    x = (torch.randn(2, 12, 9, 10, 11) * 3 + 1).to(dtype).to(memory_format=LAST)
    given = kind == "given"
    for post_ops in ((), ("add", "relu"), ("prelu",)):
        check(x, KINDS[kind](12), vectors(12, given, dtype=dtype), post_ops)
    if dtype in (torch.float16, torch.bfloat16):
        four = vectors(12, given)
        result = check(x, KINDS[kind](12), four)
        # rounded once
        rounded = exact(x, KINDS[kind](12), 1e-5, *four).to(dtype)
        assert (result == rounded).float().mean() > 0.999


@pytest.mark.parametrize("post_ops", CHAINS)
@pytest.mark.parametrize("kind", ["instance", "given"])
def test_post_ops(kind: str, post_ops: tuple[str, ...]) -> None:
    x = torch.randn(2, 20, 7, 6, 5).to(memory_format=LAST)
    check(x, KINDS[kind](20), vectors(20, kind == "given"), post_ops)


def test_the_slope_is_read_at_each_call() -> None:
    x, slope = torch.randn(1, 8, 4, 4, 4), torch.tensor(0.1)
    for value in (0.1, -2.0, float("inf")):
        slope.fill_(value)
        result = NORMALIZATION(x, 8, None, None, None, None, 1e-5, None, slope, ["prelu"])
        wanted = F.prelu(exact(x, 8, 1e-5, *[None] * 4), slope.double())
        torch.testing.assert_close(result.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [32, 4])
@pytest.mark.parametrize("first", [0.0, 1e4])
def test_large_means(groups: int, first: float) -> None:
    """The mean is a thousand deviations away, or the element that all is measured from an outlier."""
    x = 1e3 + torch.randn(2, 32, 20, 20, 20)
    x[:, :, 0, 0, 0] += first
    check(x.to(memory_format=LAST), groups, vectors(32, False))


def test_channels_of_very_different_means() -> None:
    x = torch.randn(1, 8, 16, 16, 16) + 1e4 * torch.arange(8.0)[:, None, None, None]
    check(x, 2, vectors(8, False))


@pytest.mark.parametrize("factor", [1e25, 1e-18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_that_float32_does_not_hold(factor: float, dtype: Any) -> None:
    x = (torch.randn(2, 6, 9, 10, 11) * factor).to(dtype).to(memory_format=LAST)
    for groups in (6, 2):
        check(x, groups, vectors(6, False), epsilon=0.0)


def test_constant_channels() -> None:
    x = torch.full((1, 4, 3, 5, 7), 0.1)
    four = vectors(4, False)
    result = NORMALIZATION(x, 4, *four, 1e-5, None, None, [])
    assert torch.equal(result, four[3].view(-1, 1, 1, 1).expand_as(x))
    # 0 / 0, as torch's
    without = NORMALIZATION(x, 4, *[None] * 4, 0.0, None, None, [])
    assert without.isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0, 0), (11, 10, 9)])
def test_what_is_not_finite_is_spread_over_its_channel_or_group(value: float, place: tuple[int, ...]) -> None:
    for groups, spread in ((8, [5]), (4, [4, 5])):
        x = torch.randn(2, 8, 12, 11, 10)
        x[(1, 5, *place)] = value
        theirs = F.group_norm(x, groups).isnan()
        result = NORMALIZATION(x, groups, *[None] * 4, 1e-5, None, None, ["relu"])
        assert torch.equal(result.isnan(), theirs)
        assert result[1, spread].isnan().all() and theirs.sum() == len(spread) * 12 * 11 * 10


def test_what_is_not_finite_stays_where_it_is_with_given_statistics() -> None:
    x, four = torch.randn(2, 3, 5, 5, 5), vectors(3, True)
    x[0, 1, 2, 3, 4], x[1, 0, 0, 0, 0], x[1, 2, 4, 4, 4] = float("nan"), float("inf"), -float("inf")
    four[1][2] = -1.0
    result, theirs = NORMALIZATION(x, 1, *four, 1e-5, None, None, []), F.batch_norm(x, *four)
    torch.testing.assert_close(result, theirs, equal_nan=True)
    assert result.isnan().any() and result.isinf().any()


# Memory


def orders(x: Any) -> dict[str, Any]:
    """The same numbers in different places."""
    wide = torch.zeros(*x.shape[:4], 2 * x.shape[4], dtype=x.dtype)
    wide[..., ::2] = x
    behind = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:]
    behind.copy_(x.permute(0, 2, 3, 4, 1).flatten())
    return {
        "contiguous": x.clone(memory_format=torch.contiguous_format),
        "channels last": x.clone(memory_format=LAST),
        "steps": wide[..., ::2],
        "turned": x.permute(4, 1, 0, 3, 2).contiguous().permute(2, 1, 4, 3, 0),
        "not aligned": behind.view(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 4, 1, 2, 3),
        "some channels": torch.cat([x, x], 1).to(memory_format=LAST)[:, : x.shape[1]],
    }


@pytest.mark.parametrize("shape", [(2, 12, 5, 6, 7), (2, 1, 5, 6, 7), (1, 3, 1, 1, 9), (3, 16, 40, 40, 20)])
@pytest.mark.parametrize("order", orders(torch.zeros(1, 1, 1, 1, 1)))
def test_orders_of_memory(shape: tuple[int, ...], order: str) -> None:
    x, residual = torch.randn(shape), torch.randn(shape)
    wanted = exact(x, shape[1], 1e-5, *[None] * 4) + residual.double()
    for each in (residual, orders(residual)[order]):
        given = orders(x)[order]
        arguments = (shape[1], *[None] * 4, 1e-5, each, None, ["add"])
        result = NORMALIZATION(given, *arguments)
        assert torch.equal(given, x) and result.data_ptr() != given.data_ptr()
        assert result.stride() == torch.empty(shape).to(memory_format=LAST).stride() or 1 in shape
        assert result.is_contiguous(memory_format=LAST)
        close(result, wanted)
        assert NORMALIZATION_(given, *arguments) is None
        assert torch.equal(given, result)
    assert ours.counters().torch == {}


def test_in_place_is_in_place() -> None:
    whole = torch.randn(4, 16, 6, 7, 8).to(memory_format=LAST)
    x, others, before = whole[1:3], whole[3:].clone(), whole[1:3].clone()
    place, version = x.data_ptr(), x._version
    seen = x.permute(0, 2, 3, 4, 1).numpy()
    NORMALIZATION_(x, 16, *[None] * 4, 1e-5, None, None, ["relu"])
    assert x.data_ptr() == place and x._version > version
    close(torch.from_numpy(seen).permute(0, 4, 1, 2, 3), exact(before, 16, 1e-5, *[None] * 4).relu())
    assert torch.equal(whole[1:3], x) and torch.equal(whole[3:], others)


@pytest.mark.parametrize("other", ["itself", "shifted"])
def test_residual_operands_that_are_written_over(other: str) -> None:
    whole = torch.randn(3, 8, 4, 5, 6).to(memory_format=LAST)
    x = whole[:2]
    residual = x if other == "itself" else whole[1:]
    wanted = exact(x, 8, 1e-5, *[None] * 4) + residual.double()
    NORMALIZATION_(x, 8, *[None] * 4, 1e-5, residual, None, ["add"])
    close(x, wanted)


def test_elements_that_share_memory_are_refused_as_in_torch() -> None:
    x = torch.randn(1, 4, 1, 5, 6).expand(1, 4, 3, 5, 6)
    with pytest.raises(RuntimeError, match="single memory location"):
        NORMALIZATION_(x, 4, *[None] * 4, 1e-5, None, None, [])
    close(NORMALIZATION(x, 4, *[None] * 4, 1e-5, None, None, []), exact(x, 4, 1e-5, *[None] * 4))


# What torch's own code computes, or refuses


@pytest.mark.parametrize(
    ("shape", "arguments", "error", "text"),
    [
        ((2, 4, 1, 1, 1), (4, *PLAIN), ValueError, "Expected more than 1 spatial element when training"),
        ((1, 1, 1, 1, 1), (1, *PLAIN), ValueError, "Expected more than 1 spatial element when training"),
        ((1, 4, 1, 1, 1), (4, *PLAIN), ValueError, "Expected more than 1 spatial element when training"),
        ((2, 4, 3, 3, 3), (3, *PLAIN), RuntimeError, "divisible by num_groups"),
        ((2, 4, 3, 3, 3), (0, *PLAIN), ValueError, "groups=0"),
        ((2, 4, 3, 3, 3), (4, torch.ones(4), *PLAIN[1:]), RuntimeError, "running_var must be defined"),
        ((2, 4, 3, 3, 3), (2, None, None, torch.ones(3), *PLAIN[3:]), RuntimeError, "weight"),
        ((2, 4, 3, 3, 3), (4, *PLAIN[:-1], ["swish"]), ValueError, "A post-op must be one of"),
        ((2, 4, 3, 3, 3), (4, *PLAIN[:-1], ["add"]), ValueError, "`residual` must be a tensor"),
        ((2, 4, 3, 3, 3), (4, *PLAIN[:-1], ["prelu"]), ValueError, "`slope` must be a tensor"),
        ((2, 4, 3, 3, 3), (4, *PLAIN[:5], torch.ones(2, 4, 3, 3, 3), None, []), ValueError, "`residual` must be"),
    ],
)
def test_what_is_refused(shape: tuple[int, ...], arguments: tuple[Any, ...], error: Any, text: str) -> None:
    x = torch.randn(shape)
    for device in ("cpu", "meta"):
        moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
        for operator in (NORMALIZATION, NORMALIZATION_):
            with pytest.raises(error, match=text):
                operator(x.to(device), *moved)
    assert ours.counters().ours == 0


def test_what_torch_computes_is_counted_with_the_reason() -> None:
    x, wide = torch.randn(2, 4, 3, 3, 3), torch.randn(1, 1, 3, 3, 3)
    four = vectors(4, False)
    instance = F.instance_norm(x, None, None, *four[2:])
    for data, arguments, wanted in (
        (x[..., 0], (4, *four, *PLAIN[4:]), F.instance_norm(x[..., 0], None, None, *four[2:])),
        (x[:0], (2, *PLAIN), x[:0]),
        (x, (4, *four, 1e-5, wide, None, ["add"]), instance + wide),
        (x, (4, *four, 1e-5, None, torch.arange(4.0), ["prelu"]), F.prelu(instance, torch.arange(4.0))),
        (x.to(torch.bfloat16), (4, *PLAIN[:5], x, None, ["add"]), F.instance_norm(x.to(torch.bfloat16)) + x),
    ):
        ours.reset_counters()
        result = NORMALIZATION(data, *arguments)
        torch.testing.assert_close(result, wanted)
        assert result.is_contiguous(memory_format=LAST if data.dim() == 5 else torch.contiguous_format)
        assert ours.counters().ours == 0
        ((reason, count),) = ours.counters().torch.items()
        assert count == 1 and reason.startswith("normalization: ")
        inside = data.clone()
        NORMALIZATION_(inside, *arguments)
        torch.testing.assert_close(inside, wanted.to(data.dtype))
