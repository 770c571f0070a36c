"""The one-line identity of a problem: how the fields of a spec are printed and read.

A field that most problems have at its default value is printed only where it has another one, so that keys, and with
them tuning records, outlive new fields.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvm_conv3d.spec import post_ops

if TYPE_CHECKING:
    from tvm_conv3d.spec import Conv3DSpec

_FORMAT_TO_CODE = {"channels_last": "ndhwc", "channels_first": "ncdhw"}
_CODE_TO_FORMAT = {code: name for name, code in _FORMAT_TO_CODE.items()}
_UNDILATED = (1, 1, 1)
_TRIPLE = r"\d+x\d+x\d+"
_PAIR = r"-?\d+\.-?\d+"
_KEY = re.compile(
    rf"n(?P<batch>\d+)_i(?P<input>{_TRIPLE}x\d+)_o(?P<filters>\d+)_k(?P<kernel>{_TRIPLE})_s(?P<strides>{_TRIPLE})"
    rf"_d(?P<dilation>{_TRIPLE})(_z(?P<input_dilation>{_TRIPLE}))?_p(?P<pads>{_PAIR}x{_PAIR}x{_PAIR})_g(?P<groups>\d+)"
    r"(_(?P<direction>data_gradient|weight_gradient))?_(?P<format>ndhwc|ncdhw)_(?P<dtype>[a-z0-9]+)"
    r"(_w(?P<weights>[a-z0-9]+))?(_y(?P<output>[a-z0-9]+))?_(?P<bias>bias|nobias)_(?P<post_ops>[a-z0-9_.:+-]+)",
    re.ASCII,
)
_EXAMPLE_KEY = "n1_i16x56x56x64_o64_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_bias_relu"


def printed(spec: Conv3DSpec) -> str:
    """The key: sizes, then what differs from the usual, layout, types, bias, post-ops."""
    parts = [
        f"n{spec.batch}",
        f"i{_join(spec.size)}x{spec.channels}",
        f"o{spec.filters}",
        f"k{_join(spec.kernel)}",
        f"s{_join(spec.strides)}",
        f"d{_join(spec.dilation)}",
        f"z{_join(spec.input_dilation)}" if spec.input_dilation != _UNDILATED else "",
        "p" + "x".join(f"{before}.{after}" for before, after in spec.pads),
        f"g{spec.groups}",
        spec.direction if spec.direction != "forward" else "",
        _FORMAT_TO_CODE[spec.data_format],
        spec.dtype,
        f"w{spec.weights_dtype}" if spec.weights_dtype else "",
        f"y{spec.output_dtype}" if spec.output_dtype else "",
        "bias" if spec.bias else "nobias",
        post_ops.printed(spec.post_ops),
    ]
    return "_".join(filter(None, parts))


def fields(key: str) -> dict[str, Any]:
    """The fields of a key's spec, those that are not printed left out.

    Raises:
        ValueError: `key` is not a spec's key.
    """
    match = _KEY.fullmatch(key.strip())
    if match is None:
        raise ValueError(f"Not a spec key. Received: {key!r}. A key looks like {_EXAMPLE_KEY}")
    field = match.groupdict()
    *size, channels = _numbers(field["input"])
    found: dict[str, Any] = {
        "batch": int(field["batch"]),
        "size": tuple(size),
        "channels": channels,
        "filters": int(field["filters"]),
        "pads": tuple(tuple(map(int, pair.split("."))) for pair in field["pads"].split("x")),
        "groups": int(field["groups"]),
        "data_format": _CODE_TO_FORMAT[field["format"]],
        "dtype": field["dtype"],
        "bias": field["bias"] == "bias",
        "post_ops": post_ops.parsed(field["post_ops"]),
        "weights_dtype": field["weights"],
        "output_dtype": field["output"],
        **{name: _numbers(field[name]) for name in ("kernel", "strides", "dilation")},
    }
    if field["input_dilation"]:
        found["input_dilation"] = _numbers(field["input_dilation"])
    if field["direction"]:
        found["direction"] = field["direction"]
    return found


def _join(values: Sequence[int]) -> str:
    return "x".join(map(str, values))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))
