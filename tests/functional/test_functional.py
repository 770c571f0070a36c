"""The functional form: any arrays, pads and weights, against the float64 oracle; weights that change are seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from functional_cases import FILTERS, KERNEL, RNG, VIEWS, check, data, expected, inside, peak
from pages import run_code
from problems import WINOGRAD_BOUND, numpy_dtype
from tvm_conv3d import Conv3D, conv3d
from tvm_conv3d.functional import convolution
from tvm_conv3d.functional.arguments import standard_padding
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST

#: As given, and as three pairs.
PADDINGS: dict[str, tuple[Any, Any]] = {
    "valid": ("valid", ((0, 0),) * 3),
    "same": ("SAME", ((1, 1), (0, 1), (1, 1))),
    "int": (1, ((1, 1),) * 3),
    "zero": (0, ((0, 0),) * 3),
    "numpy's int": (np.int64(2), ((2, 2),) * 3),
    "triple": ((1, 0, 2), ((1, 1), (0, 0), (2, 2))),
    "list": ([1, 0, 2], ((1, 1), (0, 0), (2, 2))),
    "array": (np.array([[1, 0], [0, 2], [3, 1]]), ((1, 0), (0, 2), (3, 1))),
    "pairs": (((2, 0), (0, 1), (1, 3)), ((2, 0), (0, 1), (1, 3))),
    "mixed": ((1, (0, 1), [2, 0]), ((1, 1), (0, 1), (2, 0))),
    "crop": (-1, ((-1, -1),) * 3),
    "crop and pad": (((-2, 3), (1, -1), (0, -3)), ((-2, 3), (1, -1), (0, -3))),
}


@pytest.mark.parametrize("name", PADDINGS)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_paddings(name: str, data_format: str) -> None:
    padding, pairs = PADDINGS[name]
    x, w, b = data(data_format=data_format)
    result = conv3d(x, w, b, padding=padding, data_format=data_format)
    assert type(result) is np.ndarray
    check(result, expected(x, w, b, pairs, data_format))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 2])
def test_types(dtype: str, groups: int) -> None:
    x, w, b = data(dtype, groups)
    result = conv3d(x, w, b, groups=groups, padding=1)
    assert result.dtype == numpy_dtype(dtype)
    check(result, expected(x, w, b, ((1, 1),) * 3, groups=groups), dtype)


@pytest.mark.parametrize(
    "steps", [{"strides": 2}, {"dilation": (1, 3, 2)}, {"strides": (1, 2, 3), "dilation": [2, 1, 2]}]
)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_strides_and_dilations_together_too(steps: dict[str, Any], data_format: str) -> None:
    x, w, _ = data(data_format=data_format)
    triples = {name: (step,) * 3 if isinstance(step, int) else tuple(step) for name, step in steps.items()}
    result = conv3d(x, w, padding=(1, 0, 1), data_format=data_format, **steps)
    check(result, expected(x, w, None, ((1, 1), (0, 0), (1, 1)), data_format, **triples))


def test_same_follows_the_strides() -> None:
    x, w, b = data()
    result = conv3d(x, w, b, strides=(2, 3, 1), padding="same")
    assert result.shape[1:4] == (3, 3, 9)
    check(result, expected(x, w, b, ((0, 1), (0, 1), (1, 1)), strides=(2, 3, 1)))


def test_post_ops() -> None:
    x, w, b = data()
    wanted = expected(x, w, b)
    check(conv3d(x, w, b, post_ops=("relu",)), np.maximum(wanted, 0))
    check(conv3d(x, w, b, post_ops=["leaky_relu"]), np.where(wanted > 0, wanted, 0.2 * wanted))
    check(conv3d(x, w, b, post_ops=[]), wanted)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_integers_are_computed_in_the_weights_type(dtype: str) -> None:
    x, w, b = data()
    whole = (np.abs(x) * 3).astype(dtype)
    for kind in ("float32", "float64"):
        result = conv3d(whole, w.astype(kind), b)
        assert result.dtype == kind
        check(result, expected(whole, w.astype(kind), b), kind)
    result = conv3d(whole, (w * 4).astype("int8"), (b * 4).astype("int16"))
    assert result.dtype == np.float32
    check(result, expected(whole, (w * 4).astype("int8"), (b * 4).astype("int16")))


def test_weights_are_cast_to_the_inputs_type() -> None:
    x, w, b = data()
    for kinds in (("float64", "float16"), ("int32", "bool"), ("bfloat16", "float64")):
        v, c = (a.astype(numpy_dtype(kind)) for a, kind in zip((w, b), kinds, strict=True))
        result = conv3d(x, v, c)
        assert result.dtype == np.float32
        check(result, expected(x, v, c))


@pytest.mark.parametrize("name", VIEWS)
def test_any_strides(name: str) -> None:
    x, w, b = data()
    wanted = expected(x, w, b)
    for arrays in ((VIEWS[name](x), w, b), (x, VIEWS[name](w), b), (x, w, VIEWS[name](b))):
        check(conv3d(*arrays), wanted)


@pytest.mark.parametrize("shape", [(0, 6, 7, 9, 4), (2, 0, 7, 9, 4)])
def test_inputs_without_elements(shape: tuple[int, ...]) -> None:
    _, w, b = data()
    result = conv3d(np.zeros(shape, np.float32), w, b, padding="same")
    assert result.shape == (*shape[:4], FILTERS)


# Memory's order


@pytest.mark.parametrize("cut", [False, True])
def test_numpys_views_of_channels_last(cut: bool) -> None:
    x, w, b = data(data_format=CHANNELS_FIRST)
    view = inside(np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0), (1, 0))))[:, :, 1:-1, :, 1:] if cut else inside(x)
    result = conv3d(view, w, b, data_format=CHANNELS_FIRST)
    check(result, expected(x, w, b, data_format=CHANNELS_FIRST))
    assert result.transpose(0, 2, 3, 4, 1).flags.c_contiguous
    assert conv3d(x, w, b, data_format=CHANNELS_FIRST).flags.c_contiguous


def test_crops_of_channels_first_keep_the_order() -> None:
    x, w, b = data(data_format=CHANNELS_FIRST)
    wanted = expected(x, w, b, ((-1, 0), (0, 0), (1, -1)), CHANNELS_FIRST)
    for array, last in ((x, False), (inside(x), True)):
        result = conv3d(array, w, b, padding=((-1, 0), 0, (1, -1)), data_format=CHANNELS_FIRST)
        check(result, wanted)
        assert result.transpose(0, 2, 3, 4, 1).flags.c_contiguous is last


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_channels_inside_are_not_copied(library: str) -> None:
    whole = inside(np.ones((1, 4, 64, 128, 128), np.float32))
    x: Any = whole
    if library == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        x = torch.from_numpy(whole)
        assert x.is_contiguous(memory_format=torch.channels_last_3d)
    w = np.ones((1, 1, 1, 4, 1), np.float32)
    assert peak(lambda: conv3d(x, w, strides=8, data_format=CHANNELS_FIRST)) < whole.nbytes // 8
    assert peak(lambda: Conv3D(1, 1, strides=8, data_format=CHANNELS_FIRST)(x)) < whole.nbytes // 2


def test_crops_are_not_copied() -> None:
    x = np.ones((1, 64, 128, 128, 4), np.float32)
    w = np.ones((1, 1, 1, 4, 1), np.float32)
    for crop in (-1, ((0, -3), (-2, 1), (1, -1))):
        assert peak(lambda crop=crop: conv3d(x, w, padding=crop, strides=8)) < x.nbytes // 8


def test_torchs_memory_formats() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    values, w, b = data(data_format=CHANNELS_FIRST)
    x = torch.from_numpy(values)
    weight = torch.from_numpy(np.ascontiguousarray(w.transpose(4, 3, 0, 1, 2)))
    bias = torch.from_numpy(b)
    formats = {"contiguous": torch.contiguous_format, "last": torch.channels_last_3d}
    cuts = {"one sample": x[:1], "one channel": x[:, :1], "a slice": x[:, :, 1:], "one cell": x[:, :, :3, :2, :3]}
    for tensor in (x, *cuts.values()):
        kernel = weight[:, : tensor.shape[1]]
        for memory_format in formats.values():
            given = tensor.contiguous(memory_format=memory_format)
            like = torch.nn.functional.conv3d(given, kernel, bias, padding=(1, 0, 1))
            result = conv3d(given, kernel.permute(2, 3, 4, 1, 0), bias, padding=(1, 0, 1), data_format=CHANNELS_FIRST)
            assert isinstance(result, torch.Tensor)
            # of one channel either may be meant; torch itself leaves the format for some small samples
            assert tensor.shape[1] == 1 or result.is_contiguous(memory_format=memory_format)
            assert tensor is not x or result.stride() == like.stride()
            torch.testing.assert_close(result, like, rtol=1e-4, atol=1e-5)


def test_layers_read_channels_inside_too() -> None:
    x, w, b = data(data_format=CHANNELS_FIRST)
    layer = Conv3D(FILTERS, KERNEL, data_format=CHANNELS_FIRST)
    layer.build(x.shape)
    layer.set_weights([w, b])
    result = layer(inside(x))
    check(result, expected(x, w, b, data_format=CHANNELS_FIRST))
    assert result.transpose(0, 2, 3, 4, 1).flags.c_contiguous
    assert layer(x).flags.c_contiguous


# Other libraries


def test_libraries_may_be_mixed() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import tvm_ffi

    x, w, b = data()
    wanted = expected(x, w, b)
    makers = {"numpy": np.asarray, "torch": torch.from_numpy, "tvm_ffi": tvm_ffi.from_dlpack}
    kinds = {"numpy": np.ndarray, "torch": torch.Tensor, "tvm_ffi": tvm_ffi.Tensor}
    for name, make in makers.items():
        for other in makers.values():
            result = conv3d(make(x), other(w), other(b))
            assert isinstance(result, kinds[name])
            check(np.from_dlpack(result), wanted)
    half = torch.from_numpy(x).bfloat16()
    assert conv3d(half, torch.from_numpy(w), torch.from_numpy(b)).dtype == torch.bfloat16


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    x, w, b = data()
    arrays = tuple(map(jax.numpy.asarray, (x, w, b)))
    result = conv3d(*arrays)
    assert isinstance(result, jax.Array)
    check(result, expected(x, w, b))
    with pytest.raises(TypeError, match=r"tvm_conv3d.conv3d .*hidden from jax.jit"):
        jax.jit(lambda kernel: conv3d(x, kernel))(arrays[1])


# Errors

X, W, B = data()

ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"x": X[0]}, ValueError, "`x` must have five axes, (batch, depth, height, width, channels)"),
    "first": (
        {"x": X[0], "data_format": CHANNELS_FIRST},
        ValueError,
        "`x` must have five axes, (batch, channels, depth, height, width) for data_format='channels_first'",
    ),
    "kernel's rank": ({"w": W[0]}, ValueError, "`w` must have five axes, (kernel depth"),
    "torch's kernel": ({"w": W.transpose(4, 3, 0, 1, 2)}, ValueError, "`w.permute(2, 3, 4, 1, 0)`"),
    "groups": ({"groups": 3}, ValueError, "divisible by `groups`. Received: 4 channels, 6 filters, groups=3"),
    "no groups": ({"groups": 0}, ValueError, "`groups` must be an integer of at least 1. Received: groups=0"),
    "bias": ({"b": B[:-1]}, ValueError, "`b` must have shape (6,), one value a filter. Received: b of shape (5,)"),
    "strides": ({"strides": (1, 2)}, ValueError, "`strides` must be an integer of at least 1, or three. Received"),
    "no strides": ({"strides": 0}, ValueError, "`strides` must be an integer of at least 1, or three. Received"),
    "dilation": ({"dilation": 1.5}, ValueError, "`dilation` must be an integer of at least 1, or three. Received"),
    "padding": ({"padding": "full"}, ValueError, '`padding` must be "valid", "same", an integer'),
    "pads": ({"padding": (1, 2)}, ValueError, "three pairs of integers (before, after). Received: padding=(1, 2)"),
    "triples": ({"padding": ((1, 2, 3),) * 3}, ValueError, "three pairs of integers"),
    "crop": ({"padding": -3}, ValueError, "`padding` crops more than there is. Received: padding=((-3, -3)"),
    "too small": ({"x": X[:, :2]}, ValueError, "The input is too small"),
    "too large": ({"padding": ((1 << 40, 0),) * 3}, ValueError, "The output is too large: shape (2, "),
    "data_format": ({"data_format": "NDHWC"}, ValueError, "`data_format` argument must be one of"),
    "a name": ({"post_ops": "relu"}, ValueError, "`post_ops` must be a tuple of post-ops, as in ('add', 'relu')"),
    "unknown": ({"post_ops": ("swish9",)}, ValueError, "A post-op must be one of add, linear, relu"),
    "a parameter": ({"post_ops": ["relu:2"]}, ValueError, "The post-op relu has these parameters: none"),
    "accuracy": ({"accuracy": "best"}, ValueError, "`accuracy` must be one of"),
    "limit": ({"workspace_limit": 0}, ValueError, "`workspace_limit` must be a number of bytes"),
    "target": ({"target": "tpu"}, ValueError, '`target` must be None or "llvm"'),
    "no array": ({"x": [1.0]}, TypeError, "`x` can't be taken. Expected an array or tensor. Received: [1.0]"),
    "no weights": ({"w": None}, TypeError, "`w` can't be taken. Expected an array or tensor. Received: None"),
    "complex": ({"w": W + 1j}, TypeError, "`w` must hold real numbers. Received: dtype=complex64. Cast it first."),
    "objects": ({"b": B.astype(object)}, TypeError, "`b` must hold real numbers. Received: dtype=object"),
    "text": ({"x": X.astype("U")}, TypeError, "`x` must hold real numbers. Received: dtype=<U"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name: str) -> None:
    changes, error, text = ERRORS[name]
    arguments = {"x": X, "w": W, "b": B} | changes
    for _ in range(2):  # no better the second time
        with pytest.raises(error, match=re.escape(text)):
            conv3d(arguments.pop("x", X), arguments.pop("w", W), arguments.pop("b", B), **arguments)
        arguments = {"x": X, "w": W, "b": B} | changes


def test_whole_floats_are_integers() -> None:
    """They equal them, as keys of what is prepared, too: so they are taken from the first call on."""
    assert standard_padding(1.0) == standard_padding(1) == ((1, 1),) * 3
    # strict: the first call of a further size sums as later ones do
    floats, integers = (conv3d(X, W, B, strides=strides, accuracy="strict") for strides in (2.0, 2))
    np.testing.assert_array_equal(floats, integers)


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_gradients_are_not_lost_in_silence(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = {key: torch.from_numpy(a.copy()) for key, a in (("x", X), ("w", W), ("b", B))}
    tensors[name].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"computes no gradients, and `{name}` requires one.*`{name}.detach\(\)`"):
        conv3d(*tensors.values())
    with torch.no_grad():
        check(conv3d(*tensors.values()), expected(X, W, B))


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_tools_that_record_are_told_the_functions_name(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = {key: torch.from_numpy(a) for key, a in (("x", X), ("w", W), ("b", B))}

    def call(value: Any) -> Any:
        return conv3d(*(tensors | {name: value}).values())

    with pytest.raises(RuntimeError, match=r"tvm_conv3d\.conv3d .*hidden from torch.func.vmap"):
        torch.func.vmap(call)(tensors[name][None])
    with pytest.raises(TypeError, match=r"tvm_conv3d\.conv3d needs numbers.*tensor that has memory"):
        call(tensors[name].to("meta"))


def test_torch_compile_goes_round_it() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w, b = (torch.from_numpy(a) for a in (X, W, B))
    graphs: list[Any] = []

    def model(value: Any) -> Any:
        return torch.relu(conv3d(value * 2, w, b))

    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
        assert torch.equal(compiled(x), model(x))
    assert len(graphs) == 2
    with pytest.raises(Exception, match=r"tvm_conv3d\.conv3d runs compiled code of its own"):
        torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.compiler.reset()


# The options


def test_options_decide_the_plan() -> None:
    x = RNG.standard_normal((1, 8, 16, 16, 32)).astype(np.float32)
    w = RNG.standard_normal((3, 3, 3, 32, 32)).astype(np.float32)
    wanted = expected(x, w, None, ((1, 1),) * 3)
    errors = [
        oracle.relative_error(conv3d(x, w, padding=1, accuracy=accuracy), wanted) for accuracy in ("strict", "default")
    ]
    assert errors[0] < errors[1] < WINOGRAD_BOUND
    host = {"kind": "llvm", "mcpu": "haswell"}
    check(conv3d(x, w, padding=1, target=host), wanted)
    options = [(dict(host), "default", 1 << 20) for _ in range(2)]
    assert convolution.executor_of(options[0]) is convolution.executor_of(options[1])


def test_the_page_of_the_documentation(tmp_path: Path) -> None:
    """Its code runs, in the order of the page."""
    pytest.importorskip("torch", reason="torch is not installed")
    run_code("functional.md", "conv3d(", tmp_path)


def test_bfloat16_of_numpy() -> None:
    x, w, b = (a.astype(ml_dtypes.bfloat16) for a in data())
    assert conv3d(x, w, b).dtype == ml_dtypes.bfloat16
