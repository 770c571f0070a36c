"""Random modules of torch's, and the oracle's results for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, DATA_GRADIENT, Conv3DSpec, Pads


def random_arguments(seed: int, transposed: bool) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of a module that torch takes, and the shape of an input."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 1, 2, 3]))
    kernel, stride, dilation = (tuple(map(int, rng.integers(1, most, 3))) for most in (4, 3, 3))
    padding: Any = int(rng.integers(0, 3)) if rng.random() < 0.5 else tuple(map(int, rng.integers(0, 3, 3)))
    given = {
        "in_channels": groups * int(rng.integers(1, 5)),
        "out_channels": groups * int(rng.integers(1, 5)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": bool(rng.integers(2)),
    }
    if transposed:
        given["output_padding"] = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
    else:
        given["padding_mode"] = str(rng.choice(["zeros", "zeros", "replicate", "reflect", "circular"]))
        if rng.random() < 0.4:
            given["padding"] = str(rng.choice(["same", "valid"]))
        if given["padding"] == "same":
            given["stride"] = 1
    # reflected borders are narrower than the input
    size = tuple(map(int, rng.integers(6, 10, 3)))
    return given, (int(rng.integers(1, 3)), given["in_channels"], *size)


def by_oracle(module: Any, x: Any) -> np.ndarray:
    """What a module of torch's says of an input, in float64, by the definition."""
    weight = module.weight.detach().double().numpy().transpose(2, 3, 4, 1, 0)
    bias = None if module.bias is None else module.bias.detach().double().numpy()
    array = x.detach().double().numpy()
    if module.transposed:
        return oracle.convolve(_transposed_spec(module, array.shape), array, weight, bias)
    # torch begins with the last axis
    around = np.reshape(module._reversed_padding_repeated_twice, (3, 2))[::-1]
    if module.padding_mode != "zeros":
        modes = {"replicate": "edge", "reflect": "reflect", "circular": "wrap"}
        array = np.pad(array, [(0, 0), (0, 0), *map(tuple, around)], mode=modes[module.padding_mode])
        around = np.zeros((3, 2), int)
    spec = Conv3DSpec(
        batch=array.shape[0],
        size=array.shape[2:],
        channels=array.shape[1],
        filters=module.out_channels,
        kernel=weight.shape[:3],
        strides=module.stride,
        dilation=module.dilation,
        pads=tuple(Pads(int(before), int(after)) for before, after in around),
        groups=module.groups,
        data_format=CHANNELS_FIRST,
    )
    return oracle.convolve(spec, array, weight, bias)


def _transposed_spec(module: Any, shape: tuple[int, ...]) -> Conv3DSpec:
    """The convolution whose input's gradient the module computes."""
    windows = [(k - 1) * d + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    axes = list(zip(shape[2:], module.stride, module.padding, windows, module.output_padding, strict=True))
    size = tuple((n - 1) * s - 2 * pad + window + more for n, s, pad, window, more in axes)
    return Conv3DSpec(
        batch=shape[0],
        size=size,
        channels=module.out_channels,
        filters=module.in_channels,
        kernel=module.kernel_size,
        strides=module.stride,
        dilation=module.dilation,
        pads=tuple(Pads(pad, pad - more) for _, _, pad, _, more in axes),
        groups=module.groups,
        data_format=CHANNELS_FIRST,
        direction=DATA_GRADIENT,
    )
