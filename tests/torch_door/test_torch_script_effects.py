"""What scripts do beside computing: each is replayed as it should be, or goes by layers and says why.

The judge is the module that was compiled, uncompiled and in float64.
"""

import copy
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)
from torch.nn import functional  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import reasons, replayed  # noqa: E402
from torch_scripts import Base, frozen, scripted, traced  # noqa: E402

SHAPES = ((1, 3, 4, 5, 6), (2, 3, 5, 5, 6))


def agree(fast: Any, module: Any, rounds: int = 4) -> None:
    """Calls of two shapes in turns, all of a module in float64, which is called as often."""
    judge = copy.deepcopy(module).double()
    torch.manual_seed(1)
    for shape in SHAPES * rounds:
        x = torch.randn(shape)
        given, wanted = x.clone(), x.double()
        with torch.inference_mode():
            found, right = (pytree.tree_leaves(each) for each in (fast(given), judge(wanted)))
        assert len(found) == len(right)
        for one, other in zip(found, right, strict=True):
            if isinstance(other, torch.Tensor):
                torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
            else:
                assert one == other
        torch.testing.assert_close(given.double(), wanted, rtol=1e-6, atol=1e-6)


class BranchOnShape(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if x.shape[2] > 4:
            return -y
        return functional.relu(y)


class LoopOverShape(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        for number in range(x.size(2)):
            if number == 3:
                break
            y = y + functional.relu(y) * number
        return y


class Attributes(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.conv(x)) * self.factor + self.plain[0] * self.factors[-1] - self.named["a"]


class Several(NamedTuple):
    first: torch.Tensor
    count: int


class Structures(Base):
    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], Several, torch.Tensor]:
        y = self.conv(x)
        parts = [part.clone() for part in y.chunk(2, 1)]
        parts.append(y + 1)
        parts[0] = parts[0] * 2
        return parts, {"twice": y * 2}, Several(parts[1:][0], x.size(0)), x


class Accumulates(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros([x.size(0), 4, x.size(2), x.size(3), x.size(4)], dtype=x.dtype)
        for number in range(3):
            out += self.conv(x * number)
        return functional.elu(out, inplace=True) + functional.silu(self.conv(x), inplace=True)


class Optionals(Base):
    def forward(self, x: torch.Tensor, scale: float | None = None, other: torch.Tensor | None = None) -> torch.Tensor:
        y = self.conv(x)
        if scale is not None:
            y = y * scale
        return y if other is None else y + other


class Reshapes(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        halves = y.view(y.size(0), 2, -1, y.size(3), y.size(4))
        last = y.permute(0, 2, 3, 4, 1).contiguous().view(y.size(0), -1, 4)
        return halves.reshape(-1).mean() + last / last.size(1)


class Raises(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(2) < 3:
            raise ValueError("it is too small")
        return self.conv(x)


REPLAYED = (BranchOnShape, LoopOverShape, Attributes, Structures, Accumulates, Reshapes, Raises)


@pytest.mark.parametrize("kind", REPLAYED)
@pytest.mark.parametrize("way", [scripted, frozen])
def test_replayed(kind: type[Base], way: Any) -> None:
    module = kind().eval()
    fast = ours.accelerate(way(module))
    agree(fast, module)
    assert replayed(fast) == 2, reasons(fast)


@pytest.mark.parametrize("kind", [Attributes, Accumulates, Reshapes])
def test_traces_hold_for_all_shapes_that_they_hold_for(kind: type[Base]) -> None:
    module = kind().eval()
    trace = traced(module, torch.randn(SHAPES[0]))
    fast = ours.accelerate(trace)
    torch.manual_seed(1)
    for shape in SHAPES * 4:
        x = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), module(x), rtol=1e-4, atol=1e-4)
    assert replayed(fast) == 2, reasons(fast)


class BranchOnValues(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if bool(y.sum() > 0):
            return -y
        return y * 2


class Item(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y * float(y.max().item())


class Counts(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.factor += 1
        return self.conv(x) * self.factor


class WritesBuffer(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += 1
        return self.conv(x) + self.total


class SetsBuffer(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total = self.total + 1
        return self.conv(x) + self.total


class WritesArgument(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.add_(2))


class ChangesList(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.factors.append(1.0)
        return self.conv(x) * len(self.factors)


class ListOfTensors(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.several[0]


class Statistics(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.norm.running_mean, self.norm.running_var
        return functional.batch_norm(self.conv(x), mean, var, training=True) + mean.sum()


class Mask(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y[y > 0]


class SharedMemory(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        half = y[:, :2]
        y.relu_()
        return half + y[:, 2:]


class SetsElements(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y[:, 0] = 1.0
        return functional.relu(y)


class Strided(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).as_strided([2, 2], [2, 1]) + 1


class Ignored(Base):
    @torch.jit.ignore
    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.conv(x))


class NoGrad(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.conv(x)


class Fork(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        future = torch.jit.fork(self.conv, x)
        return torch.jit.wait(future) + 1


BY_LAYERS = {
    BranchOnValues: "makes a Python value of a tensor",
    Item: "makes a Python value of a tensor",
    Counts: "it sets an attribute",
    WritesBuffer: "writes into an input, a parameter or a buffer",
    SetsBuffer: "it sets an attribute",
    WritesArgument: "it writes into its arguments",
    ChangesList: "it changes a list that the module holds",
    ListOfTensors: "it reads 'several', which holds more than plain values",
    Statistics: "writes into an input, a parameter or a buffer",
    Mask: "gives a shape that depends on values",
    SharedMemory: "writes into memory that other tensors share",
    SetsElements: "writes into memory that other tensors share",
    Strided: "looks at the order of memory",
    Ignored: "it calls Python code that torch.jit ignores",
    NoGrad: "with torch.no_grad()",
    Fork: "it runs parts of itself apart",
}


@pytest.mark.parametrize("kind", BY_LAYERS)
def test_by_layers(kind: type[Base]) -> None:
    module = kind().eval()
    fast = ours.accelerate(scripted(module))
    agree(fast, module)
    assert replayed(fast) == 0 and BY_LAYERS[kind] in reasons(fast), reasons(fast)


@pytest.mark.parametrize("kind", [WritesArgument, WritesBuffer])
def test_a_part_that_writes_is_run_once(kind: type[Base]) -> None:
    class Around(nn.Module):
        def __init__(self, part: Any) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Any) -> Any:
            y = x + 1
            return self.part(y) + y.sum()

    module = kind().eval()
    fast = ours.accelerate(Around(scripted(module)).eval())
    agree(fast, Around(module).eval())
    assert replayed(fast) == 0


@pytest.mark.parametrize("draw", ["dropout", "rand_like"])
def test_random_numbers_are_drawn_once(draw: str) -> None:
    class Random(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.dropout(self.conv(x), 0.5, True)

    class Noise(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + torch.rand_like(x[:, :1])

    module = (Random if draw == "dropout" else Noise)().eval()
    fast = ours.accelerate(scripted(module))
    results = []
    for each in (fast, module):
        torch.manual_seed(5)
        with torch.inference_mode():
            results.append([each(torch.ones(SHAPES[0])) for _ in range(3)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert "draws random numbers" in reasons(fast)


def test_attributes_change() -> None:
    module = Attributes().eval()
    script = scripted(module)
    fast = ours.accelerate(script)
    agree(fast, module)
    for name, value in (("factor", 5), ("factors", [3.0, 4.0, 7.0]), ("named", {"a": 1.5}), ("plain", torch.ones(2))):
        setattr(module, name, value)
        setattr(fast, name, value)
        agree(fast, module)
    assert replayed(fast) > 2 and script.factor == 3
    module.plain.fill_(9)
    fast.plain.fill_(9)
    agree(fast, module)


def test_arguments() -> None:
    module = Optionals().eval()
    fast = ours.accelerate(scripted(module))
    x, other = torch.randn(SHAPES[0]), torch.randn(1, 4, 4, 5, 6)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x,), {}),
        ((x, 2), {}),
        ((x, 2.5), {}),
        ((x,), {"other": other}),
        ((), {"x": x, "other": other, "scale": 0.5}),
    ]
    with torch.inference_mode():
        for args, kwargs in calls * 3:
            torch.testing.assert_close(fast(*args, **kwargs), module(*args, **kwargs), rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="nknown keyword"):
            fast(x, factor=3)
    assert replayed(fast) == 5


def test_errors_of_the_script() -> None:
    fast = ours.accelerate(scripted(Raises().eval()), torch.randn(SHAPES[0]))
    for _ in range(3):
        with torch.inference_mode(), pytest.raises(torch.jit.Error, match="it is too small"):
            fast(torch.randn(1, 3, 2, 5, 6))


def test_hooks_of_scripts_go_by_layers() -> None:
    module = Raises().eval()
    judge = copy.deepcopy(module)

    def doubled(self: Any, args: tuple[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        return result * 2

    module.conv.register_forward_hook(doubled)
    judge.conv.register_forward_hook(lambda part, args, result: result * 2)
    fast = ours.accelerate(scripted(module))
    agree(fast, judge)
    assert replayed(fast) == 0 and "hooks" in reasons(fast)


@torch.jit.script
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def test_functions_of_scripts_go_by_layers() -> None:
    class Calls(Base):
        def forward(self, x: Any) -> Any:
            return swish(self.conv(x))

    module = Calls().eval()
    fast = ours.accelerate(module)
    agree(fast, module)
    assert replayed(fast) == 0 and "torch.jit.script" in reasons(fast)


def test_operators_called_by_their_own_names() -> None:
    class Names(Base):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            if self.kind == "strided":
                return torch.ops.aten.as_strided(y, [2, 2], [2, 1])
            return torch.ops.aten.mul_.Tensor(torch.ops.aten.silu_.default(y), y)

    for kind, count in (("strided", 0), ("writing", 2)):
        module = Names(kind).eval()
        fast = ours.accelerate(module)
        agree(fast, module)
        assert replayed(fast) == count, reasons(fast)
