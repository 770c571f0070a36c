"""The modules of `tvm_conv3d.torch` are as torch's own: numbers, memory, parameters, errors."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pages import run_code
from torch_cases import by_oracle, random_arguments

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from torch_modules import PAIRS, all_ours, check, pair  # noqa: E402

LAST = torch.channels_last_3d


# Numbers


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("transposed", [False, True])
def test_any_arguments(seed: int, transposed: bool) -> None:
    arguments, shape = random_arguments(seed, transposed)
    module = PAIRS[transposed][1](**arguments)
    x = torch.randn(shape)
    if seed % 2:
        x = x.to(memory_format=LAST)
    with torch.no_grad():
        result = module(x)
    check(result, by_oracle(module, x))
    assert all_ours(1)
    theirs = PAIRS[transposed][0](**arguments)
    theirs.load_state_dict(module.state_dict())
    torch.testing.assert_close(result, theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_types(dtype: str, transposed: bool) -> None:
    _, module = pair(transposed, stride=2)
    module = module.to(getattr(torch, dtype))
    x = torch.randn(2, 4, 5, 6, 7).to(getattr(torch, dtype))
    result = module(x)
    assert result.dtype == x.dtype
    check(result, by_oracle(module, x), dtype)
    assert all_ours(1)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_sample_without_a_batch(transposed: bool) -> None:
    theirs, module = pair(transposed)
    x = torch.randn(4, 5, 6, 7)
    assert module(x).shape == theirs(x).shape == (6, 5, 6, 7)
    check(module(x)[None], by_oracle(module, x[None]))


def test_the_size_of_a_transposed_result_may_be_asked_for() -> None:
    theirs, module = pair(transposed=True, stride=2)
    x = torch.randn(1, 4, 5, 6, 7)
    for size in ([9, 12, 13], [10, 11, 14]):
        torch.testing.assert_close(module(x, output_size=size), theirs(x, output_size=size), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="requested an output size"):
        module(x, output_size=[8, 12, 13])


def test_attributes_that_are_set_later() -> None:
    theirs, module = pair()
    x = torch.randn(1, 4, 8, 8, 8)
    for name, value in (("padding", 2), ("dilation", (1, 2, 1)), ("padding", "same"), ("padding", (0, 1, 0))):
        for each in (theirs, module):
            setattr(each, name, value)
        torch.testing.assert_close(module(x), theirs(x), rtol=1e-4, atol=1e-5)
    module.padding, module.stride = "same", (2, 2, 2)
    with pytest.raises(RuntimeError, match=r"same.*strided"):
        module(x)


# Memory


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(5, 6, 7), (5, 1, 1)])
def test_the_order_of_memory_is_the_inputs(transposed: bool, size: tuple[int, ...]) -> None:
    theirs, module = pair(transposed)
    for batch in (1, 3):
        x = torch.randn(batch, 4, *size)
        assert module(x).stride() == theirs(x).stride()
        last = x.to(memory_format=LAST)
        assert module(last).is_contiguous(memory_format=LAST)
        assert module(last).stride() == module(x).to(memory_format=LAST).stride()


def test_weights_in_any_order_of_memory() -> None:
    theirs, module = pair()
    x = torch.randn(1, 4, 5, 6, 7)
    wanted = theirs(x)
    torch.testing.assert_close(module.to(memory_format=LAST)(x), wanted, rtol=1e-4, atol=1e-5)
    spread = torch.randn(6, 8, 3, 3, 3)[:, ::2]
    module.weight = torch.nn.Parameter(spread)
    check(module(x), by_oracle(module, x))


# Modules of torch


def test_modules_look_and_keep_as_torchs_do() -> None:
    for (theirs, mine), extra in zip(PAIRS, ({"padding": "same"}, {"output_padding": 1, "stride": 2}), strict=True):
        torch.manual_seed(1)
        original = theirs(4, 6, (3, 2, 1), groups=2, dilation=2, bias=False, dtype=torch.float64, **extra)
        torch.manual_seed(1)
        module = mine(4, 6, (3, 2, 1), groups=2, dilation=2, bias=False, dtype=torch.float64, **extra)
        assert isinstance(module, theirs) and repr(module) == repr(original)
        assert list(module.state_dict()) == list(original.state_dict())
        assert torch.equal(module.weight, original.weight)
        original.load_state_dict(module.state_dict())
        assert mine(4, 6, 1, device="meta").weight.is_meta


def saved(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("twin", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved])
@pytest.mark.parametrize("transposed", [False, True])
def test_copies(twin: Callable[[Any], Any], transposed: bool) -> None:
    _, module = pair(transposed)
    x = torch.randn(1, 4, 5, 6, 7)
    other = twin(module)
    assert type(other) is type(module)
    assert torch.equal(other(x), module(x))


def test_hooks_run() -> None:
    _, module = pair()
    seen = []
    module.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    module.register_forward_hook(lambda _, given, result: seen.append(result.shape))
    x = torch.randn(1, 4, 5, 6, 7)
    check(module(x), by_oracle(module, 2 * x))
    assert seen == [(1, 6, 5, 6, 7)]


@pytest.mark.parametrize("transposed", [False, True])
def test_conversion_shares_parameters_and_nothing_else(transposed: bool) -> None:
    theirs, module = pair(transposed)
    assert module.weight is theirs.weight and module.bias is theirs.bias and module.training is theirs.training
    module.register_forward_hook(lambda *_: 1 / 0)
    module.eval()
    theirs(torch.randn(1, 4, 5, 6, 7))
    assert theirs.training
    module.bias = None
    assert theirs.bias is not None


def test_conversion_takes_torchs_modules_only() -> None:
    class Scaled(torch.nn.Conv3d):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 2

    for wrong in (Scaled(4, 6, 3), torch.nn.ConvTranspose3d(4, 6, 3), torch.nn.Conv2d(4, 6, 3), None):
        with pytest.raises(TypeError, match=r"takes a torch\.nn\.Conv3d itself.*Received: .*\."):
            ours.Conv3d.from_torch(wrong)


# What torch computes


def test_torch_computes_the_rest_and_it_is_counted() -> None:
    theirs, module = pair()
    x = torch.randn(1, 4, 5, 6, 7)
    complex_ones = theirs.weight.to(torch.complex64), theirs.bias.to(torch.complex64)
    functional = torch.func.functional_call
    given = dict(zip(("weight", "bias"), complex_ones, strict=True))
    result = functional(module, given, (x.to(torch.complex64),))
    torch.testing.assert_close(result, functional(theirs, given, (x.to(torch.complex64),)))
    assert module(x[:0]).shape == theirs(x[:0]).shape
    assert ours.counters().torch == {"numbers of type torch.complex64": 1, "tensors without elements": 1}
    assert "0 operators by tvm_conv3d, 2 by torch's own code" in str(ours.counters())
    assert "1 by torch: numbers of type torch.complex64" in str(ours.counters())


def test_function_modes_see_torchs_functions() -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return function(*args, **(kwargs or {}))

    seen: list[Any] = []
    _, module = pair()
    x = torch.randn(1, 4, 5, 6, 7)
    with Mode():
        module(x)
    assert torch.conv3d in seen
    assert ours.counters() == ours.Counters(0, {"a torch function mode, Mode": 1})
    with torch.device("cpu"):
        module(x)
    assert ours.counters().ours == 1


def test_classes_that_wrap_tensors_are_torchs() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    theirs, module = pair()
    x = torch.randn(1, 4, 5, 6, 7)
    result = module(TwoTensor(x, 2 * x))
    torch.testing.assert_close(result.b, theirs(2 * x))
    assert ours.counters() == ours.Counters(0, {"tensors of TwoTensor, which wraps others": 1})


ERRORS: dict[str, Callable[[Any], Any]] = {
    "channels": lambda x: x[:, :3],
    "channels of a sample": lambda x: x[0, :3],
    "axes": lambda x: x[0, 0],
    "type": lambda x: x.double(),
    "integers": lambda x: x.int(),
    "no tensor": lambda x: x.numpy(),
    "sparse": lambda x: x.to_sparse(),
}


def message_of(call: Callable[[], Any]) -> tuple[type[Exception], str]:
    with pytest.raises(Exception) as caught:
        call()
    return caught.type, re.sub(r"0x\w+", "", str(caught.value))


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("transposed", [False, True])
def test_errors_are_torchs(name: str, transposed: bool) -> None:
    theirs, module = pair(transposed)
    x = ERRORS[name](torch.randn(1, 4, 5, 6, 7))
    assert message_of(lambda: module(x)) == message_of(lambda: theirs(x))


@pytest.mark.parametrize("arguments", [{"groups": 3}, {"padding_mode": "no"}, {"groups": 0}])
@pytest.mark.parametrize(("theirs", "mine"), PAIRS)
def test_the_constructors_errors_are_torchs(theirs: Any, mine: Any, arguments: dict[str, Any]) -> None:
    assert message_of(lambda: mine(4, 6, 3, **arguments)) == message_of(lambda: theirs(4, 6, 3, **arguments))


@pytest.mark.parametrize(
    ("transposed", "arguments"),
    [
        (False, {"padding": -1}),
        (False, {"padding": (0, 0, -1)}),
        (True, {"padding": -1}),
        (True, {"output_padding": 1}),
        (True, {"stride": 2, "output_padding": (0, 0, 2)}),
    ],
)
def test_geometries_that_torch_refuses_are_refused(transposed: bool, arguments: dict[str, Any]) -> None:
    theirs, mine = PAIRS[transposed]
    x = torch.randn(1, 4, 5, 6, 7)
    assert message_of(lambda: mine(4, 6, 3, **arguments)(x)) == message_of(lambda: theirs(4, 6, 3, **arguments)(x))
    network = torch.nn.Sequential(theirs(4, 6, 3, **arguments), torch.nn.ReLU()).eval()
    with torch.no_grad():
        assert message_of(lambda: ours.accelerate(network)(x))[0] is RuntimeError


def test_a_kernel_larger_than_its_input_is_refused_by_torch() -> None:
    theirs, module = torch.nn.Conv3d(4, 6, 7), ours.Conv3d(4, 6, 7)
    x = torch.randn(1, 4, 5, 6, 7)
    for each in (x, x[:, :, :0]):
        assert message_of(lambda each=each: module(each)) == message_of(lambda each=each: theirs(each))


def test_monais_tensors_keep_what_they_carry() -> None:
    data = pytest.importorskip("monai.data", reason="monai is not installed")
    theirs, module = pair()
    x = data.MetaTensor(torch.randn(1, 4, 5, 6, 7), meta={"spacing": 2})
    result = module(x)
    assert type(result) is type(theirs(x)) and result.meta == theirs(x).meta
    torch.testing.assert_close(result.as_tensor(), theirs(x).as_tensor(), rtol=1e-4, atol=1e-5)
    assert ours.counters().ours == 1


def test_the_page_of_the_documentation(tmp_path: Path) -> None:
    """Its code runs, in the order of the page."""
    run_code("pytorch.md", "Conv3d(", tmp_path)
