"""Names: snake case of classes and numbered names of layers."""

from __future__ import annotations

import re
from collections import Counter

from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock

_WORD_START = re.compile(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")
_lock = ForkSafeLock()
_given: Counter[str] = process.keep("naming: names that were given", Counter())


def snake_case(name: str) -> str:
    """`GlorotUniform` -> `glorot_uniform`, `Conv3D` -> `conv3d`, `L1L2` -> `l1l2`."""
    return _WORD_START.sub("_", name).lower()


def automatic_name(class_name: str) -> str:
    """A layer's name when none is given: `conv3d`, `conv3d_1`, ... numbered over all threads."""
    base = snake_case(class_name)
    with _lock:
        number = _given[base]
        _given[base] += 1
    return f"{base}_{number}" if number else base
