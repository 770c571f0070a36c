"""Layers drawn at random, to see whether plans hold on shapes that nobody tuned."""

from __future__ import annotations

import random
from dataclasses import replace

from tvm_conv3d.reference.layers import Layer
from tvm_conv3d.spec import Conv3DSpec, Triple, same_padding

#: Larger problems only make a run longer, smaller ones time the call.
MIN_GFLOP, MAX_GFLOP = 0.02, 12.0
KERNELS: tuple[Triple, ...] = (
    *((3, 3, 3),) * 6,
    *((1, 1, 1),) * 2,
    *((1, 3, 3),) * 2,
    *((3, 1, 1),) * 2,
    (2, 2, 2),
    (5, 5, 5),
    (3, 5, 5),
    (3, 7, 7),
)


def draw(count: int, seed: int) -> list[Layer]:
    """`count` layers of all families, odd sizes and odd channel counts among them; the same for the same seed."""
    rng = random.Random(seed)
    layers: list[Layer] = []
    while len(layers) < count:
        spec, padding = _one(rng)
        if MIN_GFLOP <= spec.gflop <= MAX_GFLOP:
            layers.append(Layer(f"random{seed}_{len(layers)}", spec, padding))
    return layers


def _one(rng: random.Random) -> tuple[Conv3DSpec, str]:
    kernel = rng.choice(KERNELS)
    kind = rng.choice(("dense",) * 5 + ("stem", "depthwise", "grouped", "strided", "dilated", "patchify"))
    width = _channels(rng)
    spec = Conv3DSpec(
        batch=rng.choice((1, 1, 1, 2)),
        size=(rng.randint(7, 40), *(rng.randint(7, 64),) * 2),
        channels=rng.randint(1, 4) if kind == "stem" else width,
        filters=width if kind == "depthwise" else _channels(rng),
        kernel=kernel,
        post_ops=("relu",),
    )
    if kind == "depthwise":
        spec = replace(spec, groups=width)
    elif kind == "grouped":
        groups = rng.choice((2, 4, 8, 16))
        spec = replace(spec, groups=groups, channels=groups * -(-width // groups), filters=4 * groups)
    elif kind == "strided":
        spec = replace(spec, strides=rng.choice(((2, 2, 2), (1, 2, 2), (2, 1, 1))))
    elif kind == "dilated":
        spec = replace(spec, kernel=(3, 3, 3), dilation=rng.choice(((2, 2, 2), (1, 2, 2))))
    elif kind == "patchify":
        spec = replace(spec, strides=kernel)
    padding = rng.choice(("same", "same", "valid"))
    if padding == "valid" and min(n - window for n, window in zip(spec.size, spec.window, strict=True)) >= 0:
        return spec, "valid"
    return replace(spec, pads=same_padding(spec.size, spec.kernel, spec.strides, spec.dilation)), "same"


def _channels(rng: random.Random) -> int:
    """Mostly what networks use, sometimes anything."""
    return rng.choice((16, 24, 32, 48, 64, 96, 128, 192, 256)) if rng.random() < 0.7 else rng.randint(5, 200)
