"""Reading the loops of a lowered function: where an index goes as loop variables step, and where it stays in bounds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, sym, tirx

Expr = Any


def put(expression: Expr, values: Mapping[Any, Expr]) -> Expr:
    """`expression` with values for some of its variables, simplified."""

    return sym.Analyzer().simplify(put_all(expression, values))


def put_all(part: Any, values: Mapping[Any, Expr]) -> Any:
    """The same of a statement or expression, as it is."""

    def value(var: ir.Var) -> Expr:
        for known, given in values.items():
            if var.same_as(known):
                return tirx.const(given, str(var.ty.dtype)) if isinstance(given, int) else given
        return var

    return tvm_ffi.structural_map(part, (ir.Var, value))


def step(expression: Expr, var: Any, others: Mapping[Any, Expr]) -> int | None:
    """By how much `expression` grows with `var`; None where that is not the same everywhere."""
    difference = put(put(expression, {**others, var: var + 1}) - put(expression, {**others, var: var}), {})
    return int(difference) if isinstance(difference, ir.prim.expr.IntImm) else None


def uses(expression: Expr, var: Any) -> bool:
    """Whether `var` occurs."""
    found: list[Any] = []
    tvm_ffi.structural_walk(expression, (ir.Var, lambda other: found.append(other) if other.same_as(var) else None))
    return bool(found)


def conjuncts(condition: Expr) -> list[Expr]:
    """What has to hold all together."""
    if isinstance(condition, tirx.And):
        return [*conjuncts(condition.a), *conjuncts(condition.b)]
    return [condition]


def all_of(conditions: list[Expr]) -> Expr:
    """All together; true where there are none."""
    return tirx.all(*conditions) if conditions else tirx.const(True, "bool")


def one_statement(parts: list[Any]) -> Any:
    """The parts, one after the other."""
    return tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Bounds:
    """Elements of a row that may be read: from the largest of `first` on, up to the least of `end`."""

    first: list[Expr]
    end: list[Expr]


def bounds(conditions: list[Expr], var: Any, stride: int, per_position: int = 1) -> Bounds:
    """Bounds of the elements at `stride` times `var`.

    Args:
        conditions: what has to hold.
        var: the step along the row.
        stride: elements from step to step.
        per_position: elements of which conditions on `var // per_position` do not tell one from another.

    Raises:
        ValueError: a condition is no comparison that grows or falls evenly with `var`.
    """
    found = Bounds([], [])
    number = ir.Var("position", str(var.ty.dtype))
    for condition in itertools.chain.from_iterable(map(_comparisons, conditions)):
        of_positions = _of_positions(condition, var, per_position, number)
        by_position = uses(of_positions, number)
        is_end, place = _bound(of_positions, number, stride) if by_position else _bound(condition, var, stride)
        (found.end if is_end else found.first).append(put(place * per_position, {}) if by_position else place)
    return found


def _bound(condition: Expr, var: Any, stride: int) -> tuple[bool, Expr]:
    """Whether a comparison ends a row, else it begins it, and before or from which element."""
    if not isinstance(condition, (tirx.LT, tirx.LE, tirx.GT, tirx.GE)):
        raise ValueError(f"Only a comparison bounds a row. Received: {condition}")
    swapped = isinstance(condition, (tirx.GT, tirx.GE))
    strict = isinstance(condition, (tirx.LT, tirx.GT))
    # that this is negative, or not positive where the comparison is not strict
    below = condition.b - condition.a if swapped else condition.a - condition.b
    start, slope = put(below, {var: 0}), step(below, var, {})
    if not slope or stride % slope:
        raise ValueError(f"Only what grows evenly along a row bounds it. Received: {condition}")
    # the outermost step that holds, not the first that does not: between them may lie more than one element
    steps, beyond = stride // abs(slope), 1 if strict else 0
    if slope > 0:
        return True, put((-start - beyond) * steps + 1, {})
    return False, put((start + beyond) * steps, {})


def _comparisons(condition: Expr) -> list[Expr]:
    """The condition; of a row of one element, where TVM makes it an equation, both of its sides."""
    if isinstance(condition, tirx.EQ):
        return [condition.a <= condition.b, condition.a >= condition.b]
    return [condition]


def _of_positions(condition: Expr, var: Any, per_position: int, number: Any) -> Expr:
    """The condition with `number` in place of `var // per_position`, where that is widened, too."""

    def divided(quotient: tirx.FloorDiv) -> Expr:
        if not isinstance(quotient.b, ir.prim.expr.IntImm) or int(quotient.b) != per_position:
            return quotient
        if quotient.a.same_as(var):
            return number
        widened = isinstance(quotient.a, tirx.Cast) and quotient.a.value.same_as(var)
        return tirx.Cast(str(quotient.ty.dtype), number) if widened else quotient

    return tvm_ffi.structural_map(condition, (tirx.FloorDiv, divided))
