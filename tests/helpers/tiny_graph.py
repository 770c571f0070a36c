"""Small frozen TensorFlow graphs for the tests of the demo, in the shape that TensorFlow 1 gave to U-Nets."""

from __future__ import annotations

from typing import Any

import numpy as np


class TinyGraph:
    """Writes a GraphDef node by node."""

    def __init__(self) -> None:
        from tensorboard.compat.proto.graph_pb2 import GraphDef

        self.graph = GraphDef()

    def node(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; lists of integers, bytes and integers become attributes. Returns its name."""
        node = self.graph.node.add(name=name, op=op)
        node.input.extend(inputs)
        for key, value in attributes.items():
            if isinstance(value, bytes):
                node.attr[key].s = value
            elif isinstance(value, list):
                node.attr[key].list.i.extend(value)
            else:
                node.attr[key].i = value
        return name

    def const(self, name: str, value: Any, *inputs: str) -> str:
        from tensorboard.util.tensor_util import make_tensor_proto

        self.node(name, "Const", *inputs)
        self.graph.node[-1].attr["value"].tensor.CopyFrom(make_tensor_proto(np.asarray(value)))
        return name

    def conv(self, name: str, source: str, kernel: np.ndarray, **attributes: Any) -> str:
        self.node(f"{name}/read", "Identity", self.const(f"{name}/kernel", kernel))
        defaults = {"strides": [1] * 5, "dilations": [1] * 5, "padding": b"SAME", "data_format": b"NDHWC"}
        return self.node(name, "Conv3D", source, f"{name}/read", **{**defaults, **attributes})

    def bias(self, name: str, source: str, values: np.ndarray) -> str:
        return self.node(name, "BiasAdd", source, self.const(f"{name}/values", values))

    def dropout(self, name: str, source: str) -> str:
        """TensorFlow 1's dropout: a conditional on `training`, dead unless it is true."""
        self.node(f"{name}/switch", "Switch", "training", "training")
        self.node(f"{name}/on", "Identity", f"{name}/switch:1")
        self.const(f"{name}/keep", np.float32(0.7), f"^{name}/on")
        self.node(f"{name}/data", "Switch", source, "training")
        self.node(f"{name}/shape", "Shape", f"{name}/data:1")
        self.node(f"{name}/random", "RandomUniform", f"{name}/shape")
        self.node(f"{name}/kept", "RealDiv", f"{name}/data:1", f"{name}/keep")
        self.node(f"{name}/noisy", "Mul", f"{name}/kept", f"{name}/random")
        self.node(f"{name}/plain", "Identity", f"{name}/data")
        return self.node(name, "Merge", f"{name}/plain", f"{name}/noisy")

    def upsample(self, name: str, source: str, kernel: np.ndarray, stride: int = 2) -> str:
        """A transposed convolution whose output shape is computed from the shape of its input."""
        self.node(f"{name}/shape", "Shape", source)
        self.const(f"{name}/factor", np.int32(stride))
        sizes = []
        for axis in range(4):
            for part, value in (("from", axis), ("to", axis + 1), ("by", 1)):
                self.const(f"{name}/{part}{axis}", np.array([value], np.int32))
            bounds = [f"{name}/{part}{axis}" for part in ("from", "to", "by")]
            size = self.node(f"{name}/size{axis}", "StridedSlice", f"{name}/shape", *bounds, shrink_axis_mask=1)
            sizes.append(self.node(f"{name}/mul{axis}", "Mul", size, f"{name}/factor") if axis else size)
        sizes.append(self.const(f"{name}/filters", np.int32(kernel.shape[3])))
        self.node(f"{name}/sizes", "Pack", *sizes)
        self.const(f"{name}/kernel", kernel)
        attributes = {"strides": [1, stride, stride, stride, 1], "padding": b"SAME", "data_format": b"NDHWC"}
        return self.node(name, "Conv3DBackpropInputV2", f"{name}/sizes", f"{name}/kernel", source, **attributes)

    def pool(self, name: str, source: str, window: int = 2) -> str:
        sides = [1, window, window, window, 1]
        return self.node(name, "MaxPool3D", source, ksize=sides, strides=sides, padding=b"VALID")

    def concat(self, name: str, *sources: str, axis: int = -1) -> str:
        return self.node(name, "ConcatV2", *sources, self.const(f"{name}/axis", np.int32(axis)))

    def inputs(self) -> None:
        self.node("img", "PlaceholderWithDefault", self.node("nowhere", "IteratorGetNext"))
        self.node("training", "PlaceholderWithDefault", self.const("training/default", True))

    def frozen(self) -> bytes:
        return bytes(self.graph.SerializeToString())


def tiny_unet(seed: int = 0) -> tuple[bytes, dict[str, np.ndarray]]:
    """A two-level U-Net with one input channel and its weights by name."""
    random = np.random.default_rng(seed)
    weights = {
        "down": random.normal(size=(3, 3, 3, 1, 4)),
        "down_bias": random.normal(size=4),
        "bottom": random.normal(size=(3, 3, 3, 4, 6)) / 8,
        "bottom_bias": random.normal(size=6),
        "up": random.normal(size=(3, 3, 3, 5, 6)) / 8,
        "last": random.normal(size=(1, 1, 1, 9, 1)) / 4,
        "last_bias": random.normal(size=1),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    g = TinyGraph()
    g.inputs()
    down = g.node(
        "down/Relu", "Relu", g.bias("down/BiasAdd", g.conv("down", "img", weights["down"]), weights["down_bias"])
    )
    pooled = g.dropout("dropout", g.pool("pool", down))
    bottom = g.bias("bottom/BiasAdd", g.conv("bottom", pooled, weights["bottom"]), weights["bottom_bias"])
    up = g.upsample("up", g.node("bottom/Relu", "Relu", bottom), weights["up"])
    last = g.conv("last", g.concat("concat", up, down), weights["last"])
    g.node("prob", "Sigmoid", g.bias("last/BiasAdd", last, weights["last_bias"]))
    return g.frozen(), weights
