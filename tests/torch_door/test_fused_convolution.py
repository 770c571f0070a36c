"""Convolutions with batch norm, residual operand and post-ops in one kernel: numbers, memory, weights that change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from problems import BOUNDS, WINOGRAD_BOUND
from sampling import sampled
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import kept_weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS, PARAMETERS
from tvm_conv3d.support.lru import Recent

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from fused_cases import CHAINS, GEOMETRIES, LAST, Case, Geometry, by_torch, error, expected  # noqa: E402
from torch_modules import all_ours  # noqa: E402
from tvm_conv3d.torch.operators import cpu_fused_convolution, post_ops  # noqa: E402

PLAIN = GEOMETRIES["plain"]


def check(case: Case, dtype: str = "float32") -> Any:
    """Runs a case on this package's kernel; its result is right, and lies as it is to lie."""
    result = case.run()
    assert ours.counters().torch == {}
    assert result.dtype == case.x.dtype
    assert result.stride() == torch.empty(result.shape).to(memory_format=LAST).stride()
    assert error(result, case) < max(BOUNDS[dtype], WINOGRAD_BOUND)
    return result


# Numbers


@pytest.mark.parametrize(
    ("name", "chain"), sampled([(name, chain) for name in GEOMETRIES for chain in CHAINS], every=4)
)
def test_geometries_and_chains(name: str, chain: tuple[str, ...]) -> None:
    check(Case.random(GEOMETRIES[name], chain))


@pytest.mark.parametrize("norm", ["affine", "bare", "weight", "bias", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_parts_of_batch_norms(norm: str, bias: bool) -> None:
    for name in ("plain", "transposed groups"):
        check(Case.random(GEOMETRIES[name], ("relu",), bias=bias, norm=norm))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "transposed odd"])
def test_types(dtype: str, name: str) -> None:
    """Weights are rounded once more than the definition has it; torch's own steps each round their results."""
    kind = getattr(torch, dtype)
    case = Case.random(GEOMETRIES[name], ("add", "relu"), kind)
    mixed = replace(case, batch_norm=[row.float() for row in case.batch_norm])
    for each in [case] if dtype == "float64" else [case, mixed]:
        if dtype == "float64":
            check(each, dtype)
            continue
        assert error(each.run(), each) < 1.5 * error(by_torch(each), each)
        assert error(each.run(), each) < 2 * BOUNDS[dtype]
    assert ours.counters().torch == {}


@pytest.mark.parametrize("step", [name for name in FUSED_ACTIVATIONS if name != "linear"])
def test_torchs_formulas_of_all_steps(step: str) -> None:
    """What gradients are taken of, and what computes when the kernel can't."""
    values = [*np.linspace(-9, 9, 181), -100.0, -1e-3, 1e-3, 100.0]
    x = torch.tensor(values, dtype=torch.float64).reshape(1, 5, 37, 1, 1)
    numbers = {"gelu": [":tanh"], "hard_tanh": [":-0.5:2"]}.get(step, [":0.7"] if step in PARAMETERS else [])
    for text in (step, *(step + more for more in numbers)):
        wanted = oracle.finish(Conv3DSpec(1, (1, 1, 1), 1, 1, (1, 1, 1), post_ops=(text,)), x.numpy())
        np.testing.assert_allclose(post_ops.apply(x, (text,)).numpy(), wanted, rtol=1e-9, atol=1e-12)
    assert set(post_ops.FORMULAS) == set(FUSED_ACTIVATIONS)


# NaN, infinity, and what can't be folded


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite(value: float) -> None:
    for chain in ((), ("add", "relu")):
        case = Case.random(replace(PLAIN, channels=16, filters=16, size=(8, 8, 8)), chain)
        case.batch_norm[2][3] = 0.0
        case.x[0, 2, 3, 4, 5] = value
        if case.residual is not None:
            case.residual[1, 1, 1, 1, 1] = value
        result, wanted = case.run(), torch.from_numpy(expected(case)).float()
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert all_ours(2)


@pytest.mark.parametrize(
    ("row", "value"), [(0, math.nan), (0, math.inf), (1, -1.0), (1, math.nan), (1, 0.0), (2, math.inf), (3, -math.inf)]
)
def test_batch_norms_that_no_weights_can_hold_are_torchs(row: int, value: float) -> None:
    case = Case.random(PLAIN, ("relu",))
    case.epsilon = 0.0
    case.batch_norm[row][1] = value
    for _ in range(2):
        torch.testing.assert_close(case.run(), by_torch(case), equal_nan=True)
    ((reason, count),) = ours.counters().torch.items()
    assert "can't be folded" in reason and count == 2
    case.batch_norm[row][1] = 1.0
    assert error(case.run(), case) < WINOGRAD_BOUND
    assert ours.counters().ours == 1


def test_weights_that_are_not_finite_are_torchs() -> None:
    case = Case.random(PLAIN)
    case.weight[1, 2, 0, 1, 2] = math.nan
    torch.testing.assert_close(case.run(), by_torch(case), equal_nan=True)
    assert ours.counters().ours == 0


def test_half_types_that_folding_would_spoil_are_torchs() -> None:
    for scale in (1e-6, 1e6):
        case = Case.random(PLAIN, dtype=torch.float16)
        case.batch_norm = [row.float() for row in case.batch_norm]
        case.batch_norm[2][2] = scale
        case.run()
    assert sum(ours.counters().torch.values()) == 2


def test_filters_that_a_batch_norm_switches_off() -> None:
    case = Case.random(PLAIN)
    case.batch_norm[2][:2] = 0.0
    result = check(case)
    wanted = case.batch_norm[3][:2].reshape(1, 2, 1, 1, 1).expand(2, 2, 7, 6, 8)
    torch.testing.assert_close(result[:, :2], wanted)


def test_large_means_leave_small_results_exact() -> None:
    """The bias is moved in float64: what the mean takes away of it does not cancel in float32."""
    case = Case.random(PLAIN)
    case.bias += 1e6
    case.batch_norm[0] = case.bias.clone()
    check(case)


# Operands and memory


def views(tensor: Any) -> dict[str, Any]:
    """The same values in several orders of memory."""
    spread = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    spread[..., ::2] = tensor
    return {
        "contiguous": tensor.contiguous(),
        "channels last": tensor.contiguous(memory_format=LAST),
        "spread": spread[..., ::2],
        "turned": tensor.transpose(2, 4).contiguous().transpose(2, 4),
        "flipped rows": tensor.permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4),
    }


@pytest.mark.parametrize("name", ["plain", "one channel", "transposed"])
def test_operands_in_any_order_of_memory(name: str) -> None:
    case = Case.random(GEOMETRIES[name], ("add", "relu"))
    for x, residual, weight in zip(*(views(t).values() for t in (case.x, case.residual, case.weight)), strict=True):
        check(replace(case, x=x, residual=residual, weight=weight))


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 1, 1), (1, 4, 1), (1, 1, 6)])
@pytest.mark.parametrize(("channels", "filters"), [(6, 4), (1, 4), (6, 1), (1, 1)])
def test_axes_of_one_element(size: tuple[int, ...], channels: int, filters: int) -> None:
    geometry = Geometry(channels, filters, kernel=(1, 1, 1), size=size, batch=1)
    check(Case.random(geometry, ("relu",)))


def test_a_residual_operand_that_is_the_input_itself() -> None:
    case = Case.random(replace(PLAIN, channels=32, filters=32, size=(24, 24, 24)), ("add", "relu"))
    for x in (case.x, case.x.contiguous(memory_format=LAST)):
        kept = x.clone()
        case.x = case.residual = x
        results = [check(case) for _ in range(2)]
        assert torch.equal(x, kept)
        assert len({t.data_ptr() for t in (x, *results)}) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda case: {"residual": case.residual[:, :1]}, "residual"),
        (lambda case: {"residual": case.residual.double()}, "residual"),
        (lambda case: {"slope": torch.rand(4)}, "prelu"),
        (lambda case: {"slope": torch.tensor([math.inf])}, "prelu"),
        (lambda case: {"slope": torch.tensor([math.nan])}, "prelu"),
    ],
)
def test_operands_that_torch_takes(change: Callable[[Case], dict[str, Any]], reason: str) -> None:
    case = Case.random(PLAIN, ("add", "prelu"))
    case = replace(case, **change(case))
    result = case.run()
    torch.testing.assert_close(result, by_torch(case), equal_nan=True)
    assert result.is_contiguous(memory_format=LAST)
    ((found, _),) = ours.counters().torch.items()
    assert reason in found


def test_what_no_algorithm_takes_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case, calls = Case.random(replace(PLAIN, size=(3, 5, 7)), ("relu",)), []

    def refuse(*given: Any) -> Any:
        calls.append(given)
        raise ValueError("no algorithm within the limit of workspace")

    monkeypatch.setattr(cpu_fused_convolution.EXECUTOR, "convolve", refuse)
    monkeypatch.setattr(cpu_fused_convolution, "_calls", Recent(4))
    for _ in range(2):
        torch.testing.assert_close(case.run(), by_torch(case))
    assert len(calls) == 1
    assert ours.counters().torch == {"no algorithm within the limit of workspace": 2}


def test_sizes_of_zero_are_torchs() -> None:
    case = Case.random(PLAIN, ("relu",))
    case.x = case.x[:0]
    assert case.run().shape == (0, 4, 7, 6, 8)
    assert ours.counters().torch == {"tensors without elements": 1}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"post_ops": ("swish",)}, ValueError, "post-op must be one of"),
        ({"post_ops": ("add",)}, ValueError, "`residual` must be a tensor where"),
        ({"post_ops": ("prelu",)}, ValueError, "`slope` must be a tensor where"),
        ({"slope": torch.ones(1)}, ValueError, "`slope` must be a tensor where"),
        ({"batch_norm": [torch.ones(4)] * 3}, ValueError, "must be empty, or running mean"),
        ({"batch_norm": [torch.ones(5)] * 4}, RuntimeError, "running_mean"),
        ({"weight": torch.ones(4, 5, 3, 3, 3)}, RuntimeError, "channel"),
    ],
)
def test_what_is_wrong_is_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    case = replace(Case.random(PLAIN), **change)
    for device in ("cpu", "meta"):
        with pytest.raises(kind, match=message):
            torch.ops.tvm_conv3d.fused_convolution(*moved(case.arguments, device))


def moved(values: Any, device: str) -> Any:
    if isinstance(values, (list, tuple)):
        return type(values)(moved(value, device) for value in values)
    return values.to(device) if isinstance(values, torch.Tensor) else values


# Weights that change


def modules() -> tuple[Any, Any]:
    convolution, norm = torch.nn.Conv3d(6, 4, 3, padding=1), torch.nn.BatchNorm3d(4).eval()
    for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        tensor.copy_(torch.rand(4) + 0.1)
    return convolution, norm


def in_place(convolution: Any, norm: Any) -> None:
    convolution.weight.mul_(2)
    norm.weight.add_(1)


def through_data(convolution: Any, norm: Any) -> None:
    norm.bias.data[1] += 1
    convolution.weight.data.view(-1)[-1] += 1


def through_numpy(convolution: Any, norm: Any) -> None:
    norm.weight.detach().numpy()[2] *= -3


def load_state_dict(convolution: Any, norm: Any) -> None:
    norm.load_state_dict({name: 2 * value for name, value in norm.state_dict().items()})
    convolution.load_state_dict({name: -value for name, value in convolution.state_dict().items()}, assign=True)


def statistics(convolution: Any, norm: Any) -> None:
    norm.running_var += 0.5
    norm.running_mean.data.zero_()


def bias_alone(convolution: Any, norm: Any) -> None:
    convolution.bias.data[0] += 2


CHANGES = [in_place, through_data, through_numpy, load_state_dict, statistics, bias_alone]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change: Callable[[Any, Any], None]) -> None:
    convolution, norm = modules()
    x = torch.randn(1, 6, 5, 6, 7)
    with torch.no_grad():
        before = check(case_of(convolution, norm, x))
        for _ in range(2):
            change(convolution, norm)
            now = check(case_of(convolution, norm, x))
            assert not torch.allclose(now, before)
            before = now


def case_of(convolution: Any, norm: Any, x: Any) -> Case:
    rows = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
    return Case(PLAIN, x, convolution.weight, convolution.bias, rows, norm.eps)


def test_folded_weights_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = kept_weights.Store()
    monkeypatch.setattr(kept_weights, "STORE", store)
    convolution, norm = modules()
    x = torch.randn(1, 6, 5, 6, 7)
    with torch.no_grad():
        for post in ((), ("relu",), ()):
            check(replace(case_of(convolution, norm, x), post_ops=post))
        assert len(store) == 1
        # one of a parameter in training, whatever of it changes
        for change in CHANGES[:3]:
            change(convolution, norm)
            check(case_of(convolution, norm, x))
            assert len(store) == 1
        # weights that two norms share
        _, other = modules()
        for each in (norm, other, norm, other):
            check(case_of(convolution, each, x))
        assert len(store) == 2


def test_kernels_of_exact_meaning_are_convolved_by_the_definition() -> None:
    """A box of ones is one before it is scaled, and where nothing is seen nothing is left but the bias."""
    case = Case.random(replace(PLAIN, channels=16, filters=16, size=(12, 12, 12)), norm="affine", bias=False)
    case.weight = torch.ones(16, 16, 3, 3, 3)
    case.x = torch.zeros_like(case.x)
    case.x[..., :4] = 1e4 * torch.rand(2, 16, 12, 12, 4)
    mean, variance, weight, bias = case.batch_norm
    nothing = (bias.double() - mean.double() * weight.double() / (variance.double() + case.epsilon).sqrt()).float()
    result = check(case)[..., 6:]
    torch.testing.assert_close(result, nothing.reshape(1, -1, 1, 1, 1).expand(result.shape), rtol=1e-6, atol=1e-7)
