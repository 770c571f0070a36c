"""What a compiled function takes, by name: nothing else says which argument stands where."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, Literal, get_args

import numpy as np

#: What an argument is to a convolution.
Role = Literal["input", "weights", "bias", "residual", "gradient", "output", "flags"]

#: Names of a convolution's arguments: of the tensors in its declaration, and so of the function's parameters.
X, KERNEL, BIAS, RESIDUAL, OUT, FLAGS = "x", "kernel", "bias", "residual", "out", "flags"

#: Names of what the gradient of weights takes beside the input, and gives beside its output: the output's gradient, and
#: the bias's.
GRADIENT, BIAS_GRADIENT = "gradient", "bias_gradient"

#: Name of the function that brings weights into the order in which the convolution reads them.
PACK = "pack"

#: Names of what packing gives; it takes the weights as they were under the names of a convolution's.
PACKED_KERNEL, PACKED_BIAS = "packed_kernel", "packed_bias"

#: The role of each name. Flags are elements of which the code makes some not finite where a sum is not, and its result
#: must not be trusted; a residual is added to the sums.
ROLES: Mapping[str, Role] = {
    X: "input",
    KERNEL: "weights",
    BIAS: "bias",
    RESIDUAL: "residual",
    OUT: "output",
    FLAGS: "flags",
    GRADIENT: "gradient",
    BIAS_GRADIENT: "output",
    PACKED_KERNEL: "output",
    PACKED_BIAS: "output",
}


@dataclass(frozen=True)
class Argument:
    """One argument of a compiled function.

    Attributes:
        name: of the function's parameter.
        role: what it is to the convolution.
        shape: as the code sees it, in elements.
        dtype: of its elements in memory; half types are "uint16".
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Of all elements; their type must be NumPy's."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Argument:
        """The inverse of :func:`dataclasses.asdict`, after JSON.

        Raises:
            TypeError, ValueError, KeyError: `values` are of no argument.
        """
        if values["role"] not in get_args(Role):
            raise ValueError(f"The role must be one of {', '.join(get_args(Role))}. Received: {values['role']!r}")
        shape = tuple(int(extent) for extent in values["shape"])
        return cls(str(values["name"]), values["role"], shape, str(values["dtype"]))


@dataclass(frozen=True)
class Function:
    """The arguments of a compiled function, in the order of its parameters."""

    arguments: tuple[Argument, ...]

    def __getitem__(self, name: str) -> Argument:
        """The argument of this name.

        Raises:
            KeyError: there is none.
        """
        return self._by_name[name]

    def get(self, name: str) -> Argument | None:
        """The argument of this name, None where there is none."""
        return self._by_name.get(name)

    def of(self, *roles: Role) -> tuple[Argument, ...]:
        """The arguments of these roles, in order."""
        return tuple(argument for argument in self.arguments if argument.role in roles)

    def ordered(self, values: Mapping[str, Any]) -> list[Any]:
        """The values of the arguments, in order; others that `values` holds are left out.

        Raises:
            KeyError: one is missing.
        """
        return [values[argument.name] for argument in self.arguments]

    def binder(self, *names: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """:meth:`ordered` for values that always come in the order of `names`: bound once, it takes no look-ups.

        Raises:
            ValueError: an argument is not among the names.
        """
        missing = [argument.name for argument in self.arguments if argument.name not in names]
        if missing:
            raise ValueError(f"The function takes {', '.join(missing)} as well. Received: {', '.join(names)}")
        places = [names.index(argument.name) for argument in self.arguments]
        # of one place, or of none, itemgetter makes no tuple
        return itemgetter(*places) if len(places) > 1 else lambda values: [values[place] for place in places]

    def to_json(self) -> list[dict[str, Any]]:
        """The arguments as JSON's types."""
        return [asdict(argument) for argument in self.arguments]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]]) -> Function:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError, ValueError, KeyError: `values` are no arguments, or two have one name.
        """
        found = cls(tuple(map(Argument.from_json, values)))
        if len(found._by_name) < len(found.arguments):
            raise ValueError(f"Arguments must have names of their own. Received: {values}")
        return found

    @functools.cached_property
    def _by_name(self) -> dict[str, Argument]:
        return {argument.name: argument for argument in self.arguments}
