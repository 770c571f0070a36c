"""Loads and stores of the element types: half types are widened when loaded and rounded once, at the end."""

from __future__ import annotations

from typing import Any

from tvm import tirx

Expr = Any  # a TVM expression; its classes are not public names


def storage_dtype(dtype: str) -> str:
    """Element type of the buffers. bfloat16 travels as its bits: LLVM targets without it have no such loads."""
    return "uint16" if dtype == "bfloat16" else dtype


def widen(value: Expr, dtype: str, accumulator: str) -> Expr:
    """A stored element as a value of the accumulator's type."""
    if dtype == "bfloat16":
        return tirx.reinterpret("float32", value.astype("uint32") << tirx.const(16, "uint32"))
    return value if dtype == accumulator else value.astype(accumulator)


def narrow(value: Expr, dtype: str, accumulator: str) -> Expr:
    """A value of the accumulator's type as a stored element, rounded to nearest even."""
    if dtype == "bfloat16":
        bits = tirx.reinterpret("uint32", value)
        half = tirx.const(0x7FFF, "uint32") + ((bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32"))
        rounded = (bits + half) >> tirx.const(16, "uint32")
        # adding to a NaN's bits could carry it into infinity: a quiet NaN keeps its upper half instead
        quiet = (bits >> tirx.const(16, "uint32")) | tirx.const(0x40, "uint32")
        magnitude = bits & tirx.const(0x7FFFFFFF, "uint32")
        is_nan = magnitude > tirx.const(0x7F800000, "uint32")
        return tirx.Select(is_nan, quiet, rounded).astype("uint16")
    return value if dtype == accumulator else value.astype(dtype)
