"""What torch asks of the fused operator: gradients, compilers, exporters, autocast, vmap, fake tensors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from fused_cases import CHAINS, GEOMETRIES, LAST, Case, by_torch, error  # noqa: E402
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION  # noqa: E402

#: Small enough for numerical gradients.
SMALL = {
    name: replace(GEOMETRIES[name], size=(4, 3, 4), batch=1)
    for name in ("plain", "six pads", "transposed groups", "one channel")
}


@pytest.fixture
def _no_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Block(torch.nn.Module):
    """Two fused convolutions, with a residual operand, as rewritten networks call them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (Case.random(GEOMETRIES["plain"], chain) for chain in (("prelu",), ("add", "relu")))
        for name in ("first", "second"):
            case = getattr(self, name)
            self.register_parameter(f"{name}_weight", torch.nn.Parameter(case.weight))
            for number, row in enumerate(case.batch_norm):
                self.register_buffer(f"{name}_{number}", row)
        self.register_buffer("slope", self.first.slope)

    def forward(self, x: Any) -> Any:
        y = self.call("first", x, None, self.slope, ["prelu"])
        return self.call("second", torch.cat([y, y[:, :2]], 1), y, None, ["add", "relu"])

    def call(self, name: str, x: Any, residual: Any, slope: Any, post_ops: list[str]) -> Any:
        rows = [getattr(self, f"{name}_{number}") for number in range(4)]
        geometry = GEOMETRIES["plain"].arguments
        return torch.ops.tvm_conv3d.fused_convolution(
            x, getattr(self, f"{name}_weight"), None, rows, 1e-3, residual, slope, post_ops, *geometry
        )


X = torch.randn(2, 6, 5, 6, 7, generator=torch.Generator().manual_seed(0))


def close(result: Any, wanted: Any) -> None:
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)


# Gradients


@pytest.mark.parametrize(("name", "chain"), [*zip(SMALL, (("add", "silu"), ("prelu",), ("gelu",), ()), strict=True)])
def test_gradients(name: str, chain: tuple[str, ...]) -> None:
    case = Case.random(SMALL[name], chain, torch.float64)
    rows = case.batch_norm
    given = [case.x, case.weight, case.bias, rows[2], rows[3], case.residual, case.slope]
    given = [None if tensor is None else tensor.requires_grad_() for tensor in given]

    def call(x: Any, weight: Any, bias: Any, gamma: Any, beta: Any, residual: Any, slope: Any) -> Any:
        norm = [*rows[:2], gamma, beta]
        return replace(case, x=x, weight=weight, bias=bias, batch_norm=norm, residual=residual, slope=slope).run()

    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)
    result = call(*given)
    assert result.stride() == torch.empty(result.shape).to(memory_format=LAST).stride()
    assert error(result, case) < 1e-13
    assert ours.counters().torch == {}
    with torch.no_grad():
        assert not call(*given).requires_grad


@pytest.mark.parametrize("name", ["plain", "transposed groups", "one channel"])
@pytest.mark.parametrize("chain", CHAINS[3:6:2])
def test_torchs_own_checks_of_operators(name: str, chain: tuple[str, ...]) -> None:
    case = Case.random(GEOMETRIES[name], chain)
    for memory_format in (torch.contiguous_format, LAST):
        case.x = case.x.contiguous(memory_format=memory_format)
        torch.library.opcheck(FUSED_CONVOLUTION, case.arguments)
        torch.library.opcheck(FUSED_CONVOLUTION, (*case.arguments, 1 << 20))
        trained = replace(case, x=case.x.clone().requires_grad_(), weight=case.weight.clone().requires_grad_())
        torch.library.opcheck(FUSED_CONVOLUTION, trained.arguments)


def test_derivatives_by_other_ways_are_torchs() -> None:
    case = Case.random(SMALL["plain"], ("silu",), torch.float64)
    tangent = torch.randn_like(case.x)

    def ours_of(x: Any) -> Any:
        return replace(case, x=x).run()

    def theirs_of(x: Any) -> Any:
        return by_torch(replace(case, x=x))

    wanted = torch.func.jvp(theirs_of, (case.x,), (tangent,))[1]
    torch.testing.assert_close(torch.func.jvp(ours_of, (case.x,), (tangent,))[1], wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(case.x, tangent)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(ours_of(dual)).tangent, wanted)
    for transform in (torch.func.grad, lambda f: torch.vmap(torch.func.grad(f))):
        x = case.x if transform is torch.func.grad else case.x[None]
        gradients = [transform(lambda x, f=f: f(x).square().sum())(x) for f in (ours_of, theirs_of)]
        torch.testing.assert_close(*gradients)


# Compilers and exporters


@pytest.mark.usefixtures("_no_compiled_code")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_compile_without_a_break(memory_format: Any) -> None:
    block = Block()
    x = X.contiguous(memory_format=memory_format)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        wanted = block(x)
        result = compiled(x)
        close(result, wanted)
        assert result.stride() == wanted.stride()
        for depth in (4, 3):
            close(compiled(x[:, :, :depth]), block(x[:, :, :depth]))
    assert ours.counters().torch == {}
    compiled(x).sum().backward()
    gradient = block.first_weight.grad
    assert gradient is not None
    close(gradient, torch.autograd.grad(block(x).sum(), block.first_weight)[0])


def test_export() -> None:
    block = Block()
    shapes = {"x": {0: torch.export.Dim("batch"), 3: torch.export.Dim("height", min=2, max=40)}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(block.eval(), (X,), dynamic_shapes=shapes), file)
    file.seek(0)
    program = torch.export.load(file)
    assert [node.target for node in program.graph.nodes].count(FUSED_CONVOLUTION) == 2
    with torch.no_grad():
        for x in (X, X[:1], X[:, :, :, :4]):
            close(program.module()(x), block(x))
    assert ours.counters().torch == {}


def test_fake_tensors_have_the_results_strides() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name in ("plain", "one channel", "transposed odd"):
        case = Case.random(GEOMETRIES[name], ("add", "relu"))
        for x in (case.x, case.x.contiguous(memory_format=LAST), case.x[..., 1:]):
            each = replace(Case.random(replace(case.geometry, size=tuple(x.shape[2:])), ("add", "relu")), x=x)
            with FakeTensorMode(allow_non_fake_inputs=True):
                fake = each.run()
            real = each.run()
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: Any) -> None:
    for chain in (("add", "relu"), ("prelu",)):
        case = Case.random(GEOMETRIES["plain"], chain)
        plain = case.run()
        with torch.autocast("cpu", dtype):
            result = case.run()
            with torch.autocast("cpu", enabled=False):
                close(case.run(), plain)
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), plain, rtol=0.05, atol=0.05)
        double = case.to(torch.float64)
        with torch.autocast("cpu", dtype):
            assert double.run().dtype == torch.float64
    assert ours.counters().torch == {}


def test_autocast_with_gradients() -> None:
    case = Case.random(GEOMETRIES["plain"], ("add", "prelu"))
    case.weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = case.run()
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert case.weight.grad.dtype == torch.float32


# vmap

#: Which operands are mapped, and the calls that compute all of it.
MAPPED = [(("x",), 1), (("x", "residual"), 1), (("residual",), 1), (("x", "weight"), 3), (("batch_norm",), 3)]


@pytest.mark.parametrize(("names", "calls"), MAPPED)
@pytest.mark.parametrize("dim", [0, 1])
def test_vmap(names: tuple[str, ...], calls: int, dim: int) -> None:
    case = Case.random(SMALL["plain"], ("add", "relu"))
    several = {name: stacked(getattr(case, name), dim) for name in names}
    dims = tuple([dim] * 4 if name == "batch_norm" else dim for name in names)
    result = torch.vmap(lambda *given: replace(case, **dict(zip(names, given, strict=True))).run(), dims)(
        *several.values()
    )
    assert ours.counters() == ours.Counters(calls, {})
    for number in range(3):
        one = {name: selected(value, dim, number) for name, value in several.items()}
        close(result[number], replace(case, **one).run())


def stacked(value: Any, dim: int) -> Any:
    if isinstance(value, list):
        return [stacked(each, dim) for each in value]
    return torch.stack([value, value / 2, value.abs() + 0.5], dim)


def selected(value: Any, dim: int, number: int) -> Any:
    return [each.select(dim, number) for each in value] if isinstance(value, list) else value.select(dim, number)


def test_vmap_over_all_of_a_network() -> None:
    block = Block()
    with torch.no_grad():
        close(torch.vmap(block)(X[:, None])[:, 0], block(X))
    assert ours.counters().torch == {}
