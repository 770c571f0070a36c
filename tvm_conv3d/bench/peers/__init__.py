"""The libraries that are compared, a module each, imported only in the library's own process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tvm_conv3d.spec import Conv3DSpec

#: Name -> where its class lives. `oracle` is this package's float64 reference, `tvm_conv3d` its product; `tuned` is
#: the same beside `default`, which takes no tuning records, and so is `alone`, without torch in its process, beside
#: `beside_torch`, where torch runs a parallel operator before each call.
PEERS = {
    "tvm_conv3d": "tvm_conv3d.bench.peers.ours:Ours",
    "tuned": "tvm_conv3d.bench.peers.ours:Ours",
    "default": "tvm_conv3d.bench.peers.ours:Untuned",
    "alone": "tvm_conv3d.bench.peers.ours:Alone",
    "beside_torch": "tvm_conv3d.bench.peers.ours:BesideTorch",
    "torch": "tvm_conv3d.bench.peers.torch:Torch",
    "openvino": "tvm_conv3d.bench.peers.openvino:OpenVINO",
    "onnxruntime": "tvm_conv3d.bench.peers.onnxruntime:ONNXRuntime",
    "tensorflow": "tvm_conv3d.bench.peers.tensorflow:TensorFlow",
    "jax": "tvm_conv3d.bench.peers.jax:JAX",
    "oracle": "tvm_conv3d.bench.peers.oracle:Oracle",
}


@dataclass(frozen=True)
class Prepared:
    """A layer ready to be timed.

    Attributes:
        run: one whole inference call on the prepared input; returns when the result is there.
        to_numpy: turns what `run` returned into an array of `spec.output_shape`; not timed.
        origin: where the plan came from, if the library can say.
        before: done before each call; not timed.
    """

    run: Callable[[], Any]
    to_numpy: Callable[[Any], np.ndarray]
    origin: str = ""
    before: Callable[[], Any] = lambda: None


class Peer(Protocol):
    """What a library's class offers. Its constructor imports the library, and fails where that is missing."""

    def __init__(self, threads: int) -> None: ...

    def versions(self) -> dict[str, str]:
        """Package name -> version."""

    def modes(self, spec: Conv3DSpec) -> list[str]:
        """The ways of running a layer, the best of which counts."""

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        """A layer with constant weights in one mode."""


def load(name: str) -> type[Peer]:
    """The class of a name in :data:`PEERS`, or of `module:Class`.

    Raises:
        ValueError: no such name.
    """
    place = PEERS.get(name, name)
    if ":" not in place:
        raise ValueError(f"A peer must be one of {', '.join(PEERS)}. Received: {name!r}")
    module, _, attribute = place.partition(":")
    loaded: type[Peer] = getattr(importlib.import_module(module), attribute)
    return loaded


def channels_first(array: np.ndarray, data_format: str) -> np.ndarray:
    """A contiguous (N, C, D, H, W) array."""
    return np.ascontiguousarray(array if data_format == "channels_first" else np.moveaxis(array, -1, 1))


def like_spec(array: np.ndarray, spec: Conv3DSpec) -> np.ndarray:
    """An (N, C, D, H, W) result in the spec's data format."""
    return array if spec.data_format == "channels_first" else np.moveaxis(array, 1, -1)


def filters_first(kernel: np.ndarray) -> np.ndarray:
    """Keras's weights as (filters, channels / groups, kd, kh, kw)."""
    return np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
