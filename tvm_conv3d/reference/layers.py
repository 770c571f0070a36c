"""What is benchmarked: layers read from CSV, from spec keys, or drawn at random."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tvm_conv3d.spec import NO_PADS, Conv3DSpec, Triple, post_ops, same_padding

#: What every library here can compute inside its convolution.
POST_OPS: tuple[tuple[str, ...], ...] = ((), ("relu",))
COLUMNS = (
    "name",
    "batch",
    "depth",
    "height",
    "width",
    "channels",
    "filters",
    "kernel",
    "strides",
    "dilation",
    "groups",
    "padding",
)


@dataclass(frozen=True)
class Layer:
    """A named problem and the Keras padding that it comes from (`same` or `valid`)."""

    name: str
    spec: Conv3DSpec
    padding: str

    @property
    def family(self) -> str:
        return family(self.spec)

    @property
    def dense(self) -> bool:
        """True for the layers whose geometric mean the closing lines show apart."""
        return self.spec.groups == 1 and self.spec.channels >= 32


def read_csv(path: Path) -> list[Layer]:
    """The layers of a CSV file with the columns of :data:`COLUMNS`; each with a bias and relu, in float32.

    Raises:
        ValueError: a column is missing, or a row does not name a convolution.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}. Received: {reader.fieldnames}")
        layers = []
        for row in reader:
            try:
                layers.append(_from_row(row))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return layers


def from_key(key: str) -> Layer:
    """The layer of a spec's key, named after the key.

    Raises:
        ValueError: not a key, post-ops that not every library fuses, a gradient, an input dilation, mixed types, or
            pads that are neither Keras's `same` nor `valid`.
    """
    spec = Conv3DSpec.parse(key)
    if spec.post_ops not in POST_OPS or not spec.plain:
        allowed = " and ".join(map(post_ops.printed, POST_OPS))
        raise ValueError(f"The benchmark compares forward convolutions of one type, {allowed} only. Received: {key}")
    if spec.pads == NO_PADS:
        padding = "valid"
    elif spec.pads == same_padding(spec.size, spec.kernel, spec.strides, spec.dilation):
        padding = "same"
    else:
        raise ValueError(f"These pads are neither Keras's `same` nor `valid`. Received: {key}")
    return Layer(key, spec, padding)


def adapt(layers: Iterable[Layer], dtype: str | None, data_format: str | None) -> list[Layer]:
    """The layers in another element type or data format; None keeps each layer's own."""
    changes = {key: value for key, value in (("dtype", dtype), ("data_format", data_format)) if value is not None}
    return [replace(layer, spec=replace(layer.spec, **changes)) for layer in layers]  # type: ignore[arg-type]


def family(spec: Conv3DSpec) -> str:
    """The kind of layer, as the tables group them: which algorithm could serve it well."""
    kernel, strides = spec.kernel, spec.strides
    rules = (
        (max(kernel) == 1, "pointwise"),
        (spec.groups > 1 and spec.group_channels == 1, "depthwise"),
        (spec.groups > 1, "grouped"),
        (kernel == strides, "patchify"),
        (spec.channels <= 4, "stem"),
        (max(spec.dilation) > 1, "dilated"),
        (kernel[1:] == (1, 1), "temporal"),
        (kernel[0] == 1, "spatial"),
        (max(strides) > 1, "strided"),
        (spec.gflop < 0.1, "tiny"),
    )
    for applies, name in rules:
        if applies:
            return name
    return {(2, 2, 2): "k2", (3, 3, 3): "dense3"}.get(kernel, "k5" if min(kernel) >= 5 else "other")


def _from_row(row: dict[str, str]) -> Layer:
    size, kernel, strides, dilation = (
        _triple("x".join(row[axis] for axis in ("depth", "height", "width"))),
        _triple(row["kernel"]),
        _triple(row["strides"]),
        _triple(row["dilation"]),
    )
    padding = row["padding"].strip().lower()
    if padding not in ("same", "valid"):
        raise ValueError(f"`padding` must be `same` or `valid`. Received: {row['padding']!r}")
    spec = Conv3DSpec(
        batch=int(row["batch"]),
        size=size,
        channels=int(row["channels"]),
        filters=int(row["filters"]),
        kernel=kernel,
        strides=strides,
        dilation=dilation,
        pads=same_padding(size, kernel, strides, dilation) if padding == "same" else NO_PADS,
        groups=int(row["groups"]),
        post_ops=("relu",),
    )
    return Layer(row["name"].strip(), spec, padding)


def _triple(text: str) -> Triple:
    numbers = tuple(int(part) for part in text.split("x"))
    if len(numbers) != 3:
        raise ValueError(f"Three numbers joined by `x` were expected. Received: {text!r}")
    return numbers
