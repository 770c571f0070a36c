"""What a replay must not lose or change: state, arguments, memory of results; and what has no graph at all."""

from __future__ import annotations

import copy
import functools
import random
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)
from torch.nn import functional  # noqa: E402

import tvm_conv3d.torch as ours  # noqa: E402

SHAPE = (2, 3, 4, 4, 4)

#: Each does something with itself, the volume that a convolution makes, and the input.
Body = Callable[[Any, Any, Any], Any]


class Network(nn.Module):
    def __init__(self, body: Body, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 4, 1)
        self.norm = nn.InstanceNorm3d(4)
        self.body = functools.partial(body)
        self.register_buffer("mean", torch.zeros(4))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Any, *more: Any) -> Any:
        return self.body(self, self.conv(x), x, *more)


def pair(body: Body, **attributes: Any) -> tuple[Any, Any]:
    """An accelerated network, and the same by torch."""
    fast, plain = (Network(body, **copy.deepcopy(attributes)).eval() for _ in range(2))
    return ours.accelerate(fast), plain


def inputs(count: int = 5) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def agree(fast: Any, plain: Any, calls: list[Any]) -> None:
    with torch.inference_mode():
        for x in calls:
            one, other = x.clone(), x.clone()
            result, wanted = fast(one), plain(other)
            torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(one, other)
            parts, others = (each if isinstance(each, tuple) else (each,) for each in (result, wanted))
            for part, expected in zip(parts, others, strict=True):
                assert part.stride() == expected.stride() or 1 in part.shape


def told(fast: Any) -> str:
    return " | ".join([*(each.reason or "replayed" for each in fast.report.replayed), *fast.report.by_layers])


def _previous(self: Any, y: Any, x: Any) -> Any:
    y = y if self.prev is None else y + self.prev
    self.prev = y
    return y


def _alias(self: Any, y: Any, x: Any) -> Any:
    y = y + self.state
    self.state = y * 0.5
    return y


def _memory(self: Any, y: Any, x: Any) -> Any:
    self.memory.append(y)
    return torch.stack(list(self.memory)).mean(0)


def _box(self: Any, y: Any, x: Any) -> Any:
    self.box.last = y if self.box.last is None else y + self.box.last
    return self.box.last


def _count(self: Any, y: Any, x: Any) -> Any:
    self.calls += 1
    return y * self.calls


def _nested(self: Any, y: Any, x: Any) -> Any:
    self.table["sizes"][0][0] += 1
    return y * self.table["sizes"][0][0]


@pytest.mark.parametrize(
    ("body", "attributes"),
    [
        (_previous, {"prev": None}),
        (_memory, {"memory": deque(maxlen=3)}),
        (_box, {"box": types.SimpleNamespace(last=None)}),
        (_count, {"calls": 0}),
        (_nested, {"table": {"sizes": [[0, 1]]}}),
    ],
)
def test_state_between_calls(body: Body, attributes: dict[str, Any]) -> None:
    agree(*pair(body, **attributes), inputs())


def test_state_that_begins_as_another_name() -> None:
    fast, plain = pair(_alias)
    for each in (fast, plain):
        each.init = torch.zeros(2, 4, 4, 4, 4)
        each.state = each.init
    agree(fast, plain, inputs())


def test_calls_that_change_each_time_are_not_recorded_for_ever() -> None:
    fast, plain = pair(_count, calls=0)
    agree(fast, plain, inputs(12))
    assert len(fast.report.replayed) == 1 and "changes what its parts hold: 'calls'" in told(fast)


def _selected(self: Any, y: Any, x: Any) -> Any:
    chosen = y[y > 0.5]
    return chosen.sum() / chosen.numel()


def _positions(self: Any, y: Any, x: Any) -> Any:
    return y.sum() * torch.nonzero(y > 0.5).shape[0]


def _random(self: Any, y: Any, x: Any) -> Any:
    return y * random.choice([1.0, 2.0])


def _where_it_lies(self: Any, y: Any, x: Any) -> Any:
    return torch.as_strided(y, (1, 4, 4, 4), (64, 16, 4, 1))


def _its_place(self: Any, y: Any, x: Any) -> Any:
    return y + x.storage_offset()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_selected, "__getitem__ gives a shape that depends on values"),
        (_positions, "nonzero gives a shape that depends on values"),
        (_random, "it draws random numbers"),
        (_where_it_lies, "as_strided looks at the order of memory"),
        (_its_place, "storage_offset looks at the order of memory"),
    ],
)
def test_what_is_not_recorded(body: Body, reason: str) -> None:
    fast, plain = pair(body)
    with torch.inference_mode():
        for x in inputs(3):
            random.seed(0)
            result = fast(x)
            random.seed(0)
            torch.testing.assert_close(result, plain(x), rtol=1e-4, atol=1e-4)
    assert told(fast) == reason


def test_arguments_that_a_call_changes() -> None:
    def cached(self: Any, y: Any, x: Any, cache: Any) -> Any:
        out = y + cache[0]
        cache[0] = y
        return out

    fast, plain = pair(cached)
    caches = [[torch.zeros(2, 4, 4, 4, 4)] for _ in range(2)]
    with torch.inference_mode():
        for x in inputs():
            torch.testing.assert_close(fast(x, caches[0]), plain(x, caches[1]), rtol=1e-4, atol=1e-4)
    assert "it changes its arguments" in told(fast)


def _configured(self: Any, y: Any, x: Any) -> Any:
    y = self.act(y) * self.config.scale * self.nested[0][0]
    return y if self.mean is None else y + self.mean.sum()


def _other_function(module: Any) -> None:
    module.act = functional.gelu


def _other_setting(module: Any) -> None:
    module.config.scale = 3.0


def _other_element(module: Any) -> None:
    module.nested[0][0] = 5


def _no_buffer(module: Any) -> None:
    module.mean = None


@pytest.mark.parametrize("change", [_other_function, _other_setting, _other_element, _no_buffer])
def test_settings_may_change(change: Callable[[Any], None]) -> None:
    attributes = {"act": functional.relu, "config": types.SimpleNamespace(scale=2.0), "nested": [[1, 2], 3]}
    fast, plain = pair(_configured, **attributes)
    agree(fast, plain, inputs(3))
    assert told(fast) == "replayed"
    for each in (fast, plain):
        change(each)
    agree(fast, plain, inputs(3))


def test_layers_may_become_wider() -> None:
    fast, plain = pair(lambda self, y, x: self.norm(y))
    agree(fast, plain, inputs(2))
    for each in (fast, plain):
        torch.manual_seed(2)
        each.conv.weight, each.conv.bias = nn.Parameter(torch.randn(8, 3, 1, 1, 1)), nn.Parameter(torch.randn(8))
        each.norm.num_features = 8
    agree(fast, plain, inputs(2))


RESULTS: dict[str, Body] = {
    "a sample": lambda self, y, x: y[0],
    "permuted": lambda self, y, x: y.permute(0, 2, 1, 3, 4).contiguous(),
    "a view": lambda self, y, x: y[:, 1:3],
    "flat": lambda self, y, x: y.flatten(2),
    "the input": lambda self, y, x: (y, x),
    "a copy of the input": lambda self, y, x: (y, functional.pad(x, (0, 0)) + 0),
    "the input padded by nothing": lambda self, y, x: (y, functional.pad(x, (0, 0))),
    "twice": lambda self, y, x: (y, y),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("last", [False, True])
def test_results_lie_as_torchs_do(name: str, last: bool) -> None:
    fast, plain = pair(RESULTS[name])
    calls = [x.to(memory_format=torch.channels_last_3d) if last else x for x in inputs(3)]
    agree(fast, plain, calls)
    x = calls[0].clone()
    with torch.inference_mode():
        result = fast(x)
        parts = result if isinstance(result, tuple) else (result,)
        assert any(part is x for part in parts) == (name == "the input")
        for part in parts[1:]:
            if name != "the input":
                part.zero_()
        torch.testing.assert_close(x, calls[0])
        if name == "twice":
            assert parts[0] is parts[1]


def test_effects_happen_once() -> None:
    def counted(self: Any, y: Any, x: Any, z: Any) -> Any:
        z ^= 1
        return y + z

    fast, plain = pair(counted)
    ones = [torch.tensor(9), torch.tensor(9)]
    with torch.inference_mode():
        for x in inputs(3):
            torch.testing.assert_close(fast(x, ones[0]), plain(x, ones[1]), rtol=1e-4, atol=1e-4)
            assert ones[0] == ones[1]


def test_statistics_are_brought_up_to_date_once() -> None:
    def updated(self: Any, y: Any, x: Any) -> Any:
        return torch.batch_norm(y, None, None, self.mean, self.variance, True, 0.5, 1e-5, False)

    fast, plain = pair(updated)
    for each in (fast, plain):
        each.register_buffer("variance", torch.ones(4))
    agree(fast, plain, inputs(3))
    torch.testing.assert_close(fast.mean, plain.mean)


def test_an_input_that_the_module_holds() -> None:
    fast, plain = pair(lambda self, y, x: y + self.conv(self.token))
    for each in (fast, plain):
        each.register_buffer("token", torch.ones(SHAPE))
    with torch.inference_mode():
        torch.testing.assert_close(fast(fast.token), plain(plain.token), rtol=1e-4, atol=1e-4)
    agree(fast, plain, inputs(3))


class Closed(dict[str, int]):
    def __iter__(self) -> Any:
        raise RuntimeError("nobody looks into this")

    def keys(self) -> Any:
        raise RuntimeError("nobody looks into this")


def test_parts_that_cannot_be_looked_at() -> None:
    fast, plain = pair(lambda self, y, x: y.relu())
    for each in (fast, plain):
        each.closed = Closed(a=1)
    agree(fast, plain, inputs(3))
    assert len(fast.report.replayed) == 1 and "nobody looks into this" in told(fast)


def test_zeros_tell_nothing() -> None:
    fast, plain = pair(lambda self, y, x: (y - self.conv.bias[:, None, None, None]).relu())
    agree(fast, plain, [torch.zeros(SHAPE), *inputs(3)])
    assert told(fast) == "replayed"
    agree(fast, plain, [torch.zeros(SHAPE)])


def test_grad_mode_is_told_apart() -> None:
    fast, plain = pair(lambda self, y, x: y * (2 if torch.is_grad_enabled() else 3))
    fast.requires_grad_(False)
    plain.requires_grad_(False)
    agree(fast, plain, inputs(3))
    for x in inputs(3):
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-4)


def test_a_forward_of_the_module_itself() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(3, 4, 1)).eval()
    module.forward = types.MethodType(lambda self, x: self[0](x) * 2, module)
    fast = ours.accelerate(module)
    agree(fast, module, inputs(3))
    assert told(fast) == "replayed"
    agree(copy.deepcopy(fast), module, inputs(3))


def test_compiled_modules_are_left_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(3, 4, 1)).eval()
    scripted = torch.jit.trace(module, torch.zeros(SHAPE))
    agree(ours.accelerate(scripted), module, inputs(2))
    fast = ours.accelerate(torch.compile(module, backend="eager"))
    agree(fast, module, inputs(2))
    assert "compiled by torch already" in fast.report.left[""]


def test_parts_with_names_of_the_language() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.heads = nn.ModuleDict({"global": nn.Conv3d(3, 4, 1)})

        def forward(self, x: Any) -> Any:
            return self.heads["global"](x).relu()

    agree(ours.accelerate(Heads().eval()), Heads().eval(), inputs(3))


ODD: dict[str, Body] = {
    "several results": lambda self, y, x: torch.cat(y.aminmax(dim=1, keepdim=True), 1),
    "sparse": lambda self, y, x: y.flatten(1).to_sparse().to_dense(),
    "out": lambda self, y, x: torch.max(y, 1, out=(y.new_empty(0), torch.empty(0, dtype=torch.long)))[0],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_functions(name: str) -> None:
    agree(*pair(ODD[name]), inputs(3))


def test_transforms_of_torch_func() -> None:
    fast, plain = pair(lambda self, y, x: y.relu())
    xs = torch.stack(inputs(2))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(fast)(xs), torch.func.vmap(plain)(xs), rtol=1e-4, atol=1e-4)


def test_an_attribute_called_report() -> None:
    class Reporting(Network):
        def report(self, y: Any) -> Any:
            return y * 2

    module = Reporting(lambda self, y, x: self.report(y)).eval()
    fast = ours.accelerate(module)
    agree(fast, module, inputs(3))
    assert fast.forward.report.replayed[0].reason is None
