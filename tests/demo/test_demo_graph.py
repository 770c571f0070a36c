"""Frozen graphs: what is lowered, what is refused, and a tiny network from end to end."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_graph import TinyGraph, tiny_unet
from tvm_conv3d.demo.errors import DemoError
from tvm_conv3d.demo.graph import Concat, Convolution, MaxPool, Program, TransposedConvolution, lower
from tvm_conv3d.reference.oracle import convolve, relative_error
from tvm_conv3d.spec import DATA_GRADIENT, Conv3DSpec, Triple, same_padding

pytest.importorskip("tensorboard", reason="the demo's packages are not installed")

SHAPE = (1, 4, 6, 8, 1)


def lower_tiny(frozen: bytes, output: str = "prob", training: bool = False, shape: tuple = SHAPE) -> Program:
    return lower(frozen, output, {"img": shape}, {"training": training})


def same(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """A `same` convolution in float64."""
    size: Triple = x.shape[1:4]
    pads = same_padding(size, kernel.shape[:3], (1, 1, 1), (1, 1, 1))
    spec = Conv3DSpec(x.shape[0], size, x.shape[4], kernel.shape[4], kernel.shape[:3], pads=pads)
    return convolve(spec, x, kernel, bias)


def test_unet_becomes_a_list_of_fused_steps() -> None:
    program = lower_tiny(tiny_unet()[0])
    kinds = [type(step) for step in program.steps]
    assert kinds == [Convolution, MaxPool, Convolution, TransposedConvolution, Concat, Convolution]
    assert [step.name for step in program.steps] == ["down/Relu", "pool", "bottom/Relu", "up", "concat", "prob"]
    assert [getattr(step, "activation", "") for step in program.steps] == ["relu", "", "relu", "linear", "", "sigmoid"]
    assert [step.shape for step in program.steps] == [
        (1, 4, 6, 8, 4),
        (1, 2, 3, 4, 4),
        (1, 2, 3, 4, 6),
        (1, 4, 6, 8, 5),
        (1, 4, 6, 8, 9),
        (1, 4, 6, 8, 1),
    ]
    assert program.steps[4].sources == ("up", "down/Relu")


def test_shapes_follow_the_input() -> None:
    program = lower_tiny(tiny_unet()[0], shape=(3, 2, 2, 2, 1))
    assert program.steps[3].shape == (3, 2, 2, 2, 5)


def test_strides_dilation_and_padding_are_kept() -> None:
    g = TinyGraph()
    g.inputs()
    g.conv("a", "img", np.ones((3, 3, 3, 1, 2), np.float32), strides=[1, 2, 1, 3, 1], padding=b"VALID")
    g.conv("b", "a", np.ones((1, 2, 1, 2, 2), np.float32), dilations=[1, 1, 3, 1, 1], padding=b"VALID")
    first, second = lower_tiny(g.frozen(), "b", shape=(1, 9, 9, 9, 1)).steps
    assert isinstance(first, Convolution) and isinstance(second, Convolution)
    assert (first.strides, first.padding, first.shape) == ((2, 1, 3), "valid", (1, 4, 7, 3, 2))
    assert (second.dilation, second.shape) == ((1, 3, 1), (1, 4, 4, 3, 2))


def test_training_is_refused_as_it_needs_random_numbers() -> None:
    with pytest.raises(DemoError, match=r"RandomUniform|RealDiv"):
        lower_tiny(tiny_unet()[0], training=True)


@pytest.mark.parametrize(("wanted", "text"), [("nothing", "no node 'nothing'"), ("training", "does not depend")])
def test_wrong_output(wanted: str, text: str) -> None:
    with pytest.raises(DemoError, match=text):
        lower_tiny(tiny_unet()[0], wanted)


@pytest.mark.parametrize("frozen", [b"\xff\xfe no graph", b"<html></html>"])
def test_garbage_is_refused(frozen: bytes) -> None:
    with pytest.raises(DemoError, match="Not a frozen TensorFlow graph"):
        lower_tiny(frozen)


def refused(build: str) -> bytes:
    """A graph whose node `prob` must be refused for the reason `build`."""
    g = TinyGraph()
    g.inputs()
    ones = np.ones((1, 1, 1, 1, 2), np.float32)
    if build == "operation":
        g.node("prob", "FusedBatchNorm", "img")
    elif build == "lonely activation":
        g.node("prob", "Relu", "img")
    elif build == "shared convolution":
        g.conv("a", "img", ones)
        g.concat("prob", g.node("b", "Relu", "a"), "a")
    elif build == "second bias":
        g.bias("prob", g.bias("b", g.conv("a", "img", ones), np.ones(2)), np.ones(2))
    elif build == "layout":
        g.conv("prob", "img", ones, data_format=b"NCDHW")
    elif build == "explicit padding":
        g.conv("prob", "img", ones, padding=b"EXPLICIT")
    elif build == "batch stride":
        g.conv("prob", "img", ones, strides=[2, 1, 1, 1, 1])
    elif build == "rest":
        g.pool("prob", "img", window=3)
    elif build == "axis":
        g.concat("prob", "img", "img", axis=1)
    elif build == "product of data":
        g.node("prob", "Mul", "img", "img")
    elif build == "dangling":
        g.node("prob", "Identity", "elsewhere")
    return g.frozen()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        ("operation", "'FusedBatchNorm' of node 'prob' is not understood"),
        ("lonely activation", "must follow a convolution"),
        ("shared convolution", "must follow a convolution"),
        ("second bias", "second bias"),
        ("layout", "NDHWC"),
        ("explicit padding", "SAME or VALID"),
        ("batch stride", "leave batch and channels alone"),
        ("rest", "must tile its input"),
        ("axis", "must join channels"),
        ("product of data", "not understood"),
        ("dangling", "refers to node 'elsewhere'"),
    ],
)
def test_what_is_not_understood_is_named(build: str, text: str) -> None:
    with pytest.raises(DemoError, match=text):
        lower_tiny(refused(build))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("threads", [1, 3])
def test_network_equals_the_oracle(batch: int, threads: int) -> None:
    from tvm_conv3d.demo.network import Network

    frozen, weights = tiny_unet()
    shape = (batch, *SHAPE[1:])
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    down = np.maximum(same(x, weights["down"], weights["down_bias"]), 0)
    pooled = down.reshape(batch, 2, 2, 3, 2, 4, 2, 4).max(axis=(2, 4, 6))
    bottom = np.maximum(same(pooled, weights["bottom"], weights["bottom_bias"]), 0)
    # Zero-stuffed with the cells at odd places, which leaves the flipped kernel centred.
    spread = np.zeros((*down.shape[:4], 6))
    spread[:, 1::2, 1::2, 1::2] = bottom
    up = same(spread, np.moveaxis(weights["up"][::-1, ::-1, ::-1], 3, 4))
    expected = 1 / (1 + np.exp(-same(np.concatenate([up, down], -1), weights["last"], weights["last_bias"])))

    network = Network(lower_tiny(frozen, shape=shape), threads)
    seen: list[str] = []
    first = network.run(x, lambda step, convolving, whole: seen.append(step.name))
    assert relative_error(first, expected) < 1e-5
    assert seen == [step.name for step in network.program.steps]
    # The buffers that a second run writes again hold nothing that the caller sees.
    again = network.run(np.zeros_like(x))
    assert relative_error(network.run(x), first) == 0
    assert relative_error(again, first) > 0
    plans = [network.plan(step) for step in network.program.steps]
    assert [plan is not None for plan in plans] == [True, False, True, True, False, True]
    specs = [plan.spec for plan in plans if plan is not None]
    assert specs[0].post_ops == ("relu",) and specs[2].direction == DATA_GRADIENT


def test_network_refuses_another_shape() -> None:
    from tvm_conv3d.demo.network import Network

    with pytest.raises(DemoError, match="The network takes"):
        Network(lower_tiny(tiny_unet()[0])).run(np.zeros((1, 2, 2, 2, 1), np.float32))


def test_a_transposed_convolution_may_have_several_readers_or_be_the_last() -> None:
    from tvm_conv3d.demo.network import Network

    g = TinyGraph()
    g.inputs()
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2, 1)).astype(np.float32)
    g.upsample("up", "img", kernel)
    g.concat("prob", "up", "up")
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    double = Network(lower_tiny(g.frozen())).run(x)
    single = Network(lower_tiny(g.frozen(), "up")).run(x)
    assert single.shape == (1, 8, 12, 16, 2)
    np.testing.assert_array_equal(double, np.concatenate([single, single], -1))


def test_the_callers_result_is_not_written_again() -> None:
    from tvm_conv3d.demo.network import Network

    g = TinyGraph()
    g.inputs()
    g.pool("prob", "img")
    network = Network(lower_tiny(g.frozen()))
    ones = network.run(np.ones(SHAPE, np.float32))
    network.run(np.zeros(SHAPE, np.float32))
    assert ones.all()
