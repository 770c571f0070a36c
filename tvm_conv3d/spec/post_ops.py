"""What becomes of a sum before it is stored: a chain of elementwise steps (oneDNN's post-ops).

A step is written as its name and, where they are not its default ones, its parameters: `relu`, `leaky_relu:0.01`,
`gelu:tanh`, `hard_tanh:-2:2`. Names, order of parameters and defaults are those of Keras's functions, or of PyTorch's
where Keras's has no parameter. `add` adds a residual operand of the output's shape and type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

#: Activations with an elementwise form, computed inside the kernel's epilogue.
FUSED_ACTIVATIONS = (
    "linear",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "sigmoid",
    "log_sigmoid",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "hard_shrink",
    "soft_shrink",
    "tanh",
    "tanh_shrink",
    "softplus",
    "softsign",
    "exponential",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
)

#: The step that adds the residual operand.
ADD = "add"

#: The activation that changes nothing; a chain that is printed as this one is empty.
LINEAR = "linear"

#: What joins the steps of a chain, and a step's name and parameters.
_STEPS, _PARTS = "+", ":"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a step.

    Attributes:
        name: as in Keras or PyTorch.
        default: its value where none is given.
        minimum: the least number that is allowed.
        positive: zero is not allowed, either.
        words: what is allowed where the parameter is a word.
    """

    name: str
    default: float | str
    minimum: float = -math.inf
    positive: bool = False
    words: tuple[str, ...] = ()

    def parse(self, text: str) -> float | str | None:
        """The value that `text` stands for; None where it is not allowed."""
        if self.words:
            return text if text in self.words else None
        try:
            # -0 is 0: equal chains are printed alike
            value = float(text) + 0.0
        except ValueError:
            return None
        allowed = math.isfinite(value) and value >= self.minimum and not (self.positive and value == 0)
        return value if allowed else None

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.words:
            return " or ".join(self.words)
        if self.positive:
            return "a number above 0"
        return "a finite number" if self.minimum == -math.inf else f"a number of at least {self.minimum:g}"


#: The parameters of those steps that have some.
PARAMETERS = {
    "leaky_relu": (Parameter("negative_slope", 0.2),),
    "elu": (Parameter("alpha", 1.0),),
    "celu": (Parameter("alpha", 1.0, 0.0, positive=True),),
    "gelu": (Parameter("approximate", "none", words=("none", "tanh")),),
    "hard_tanh": (Parameter("min_val", -1.0), Parameter("max_val", 1.0)),
    "hard_shrink": (Parameter("threshold", 0.5, 0.0),),
    "soft_shrink": (Parameter("threshold", 0.5, 0.0),),
    "softplus": (Parameter("beta", 1.0, 0.0, positive=True),),
    "squareplus": (Parameter("b", 4.0, 0.0, positive=True),),
}


class PostOp(NamedTuple):
    """One step of a chain.

    Attributes:
        name: one of :data:`FUSED_ACTIVATIONS`, or :data:`ADD`.
        values: of all its parameters.
    """

    name: str
    values: tuple[float | str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> PostOp:
        """The step that `text` stands for.

        Raises:
            ValueError: there is no such step, or a parameter is not allowed.
        """
        name, *given = text.split(_PARTS) if isinstance(text, str) else (text,)
        if name != ADD and name not in FUSED_ACTIVATIONS:
            raise ValueError(
                f"A post-op must be one of {ADD}, {', '.join(FUSED_ACTIVATIONS)}, some with parameters, as in "
                f"leaky_relu:0.01. Received: {text!r}"
            )
        parameters = PARAMETERS.get(name, ())
        if len(given) > len(parameters):
            known = ", ".join(parameter.name for parameter in parameters) or "none"
            raise ValueError(f"The post-op {name} has these parameters: {known}. Received: {text!r}")
        values = []
        for number, parameter in enumerate(parameters):
            value = parameter.parse(given[number]) if number < len(given) else parameter.default
            if value is None:
                raise ValueError(f"`{parameter.name}` of {name} must be {parameter.allowed}. Received: {text!r}")
            values.append(value)
        if name == "hard_tanh" and values[0] > values[1]:  # type: ignore[operator]
            raise ValueError(f"`min_val` of {name} must not be above its `max_val`. Received: {text!r}")
        return cls(name, tuple(values))

    def __str__(self) -> str:
        """The shortest text that :meth:`parse` reads as this step."""
        given = list(self.values)
        parameters = PARAMETERS.get(self.name, ())
        while given and given[-1] == parameters[len(given) - 1].default:
            given.pop()
        return _PARTS.join([self.name, *map(_printed, given)])


def canonical(post_ops: Iterable[str]) -> tuple[str, ...]:
    """The same chain, each step in its shortest form, without those that change nothing.

    Raises:
        ValueError: it is a string or no sequence, a step is unknown, or there are two residual operands.
    """
    if isinstance(post_ops, str) or not isinstance(post_ops, Iterable):
        raise ValueError(f"`post_ops` must be a tuple of post-ops, as in ('add', 'relu'). Received: {post_ops!r}")
    steps = tuple(str(step) for step in map(PostOp.parse, post_ops) if step.name != LINEAR)
    if steps.count(ADD) > 1:
        raise ValueError(f"`post_ops` must hold {ADD!r} at most once. Received: {post_ops!r}")
    return steps


def printed(post_ops: tuple[str, ...]) -> str:
    """A canonical chain in one word."""
    return _STEPS.join(post_ops) or LINEAR


def parsed(text: str) -> tuple[str, ...]:
    """The inverse of :func:`printed`.

    Raises:
        ValueError: as :func:`canonical`.
    """
    return canonical(text.split(_STEPS))


def _printed(value: float | str) -> str:
    """The shortest text of a parameter; it holds no plus sign, which joins steps."""
    return value if isinstance(value, str) else repr(value).removesuffix(".0").replace("e+", "e")
