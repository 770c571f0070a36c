"""Dot-product units of CPUs: instructions that add several products of half or 8-bit types to each of some sums."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple


class DotUnit(NamedTuple):
    """One instruction: a matrix of `rows` x `depth` times one of `depth` x `columns`, added to 32-bit sums.

    Attributes:
        feature: LLVM's name of what a CPU must have.
        dtype: of the factors.
        rows, columns: of the sums.
        depth: products that are added to each sum at once.
    """

    feature: str
    dtype: str
    rows: int
    columns: int
    depth: int


#: All units, the faster of a type first, each with the flag by which Linux names it; "" where it names none on x86.
_UNITS = (
    (DotUnit("amx-bf16", "bfloat16", 16, 16, 32), "amx_bf16"),
    (DotUnit("amx-fp16", "float16", 16, 16, 32), "amx_fp16"),
    (DotUnit("amx-int8", "int8", 16, 16, 64), "amx_int8"),
    (DotUnit("avx512bf16", "bfloat16", 1, 16, 2), "avx512_bf16"),
    (DotUnit("avx512vnni", "int8", 1, 16, 4), "avx512_vnni"),
    (DotUnit("avxvnni", "int8", 1, 8, 4), "avx_vnni"),
    # Arm's, of 128 bits, which its wider vectors hold several times
    (DotUnit("bf16", "bfloat16", 2, 2, 4), ""),
    (DotUnit("i8mm", "int8", 2, 2, 8), ""),
    (DotUnit("dotprod", "int8", 1, 4, 4), ""),
)


def units(features: Set[str]) -> tuple[DotUnit, ...]:
    """The units of a CPU with these features of LLVM's, the faster of a type first."""
    return tuple(unit for unit, _ in _UNITS if unit.feature in features)


def hidden(features: Set[str], flags: Set[str]) -> list[str]:
    """Those of `features` that are units of which the system, by its flags, reports nothing."""
    return [unit.feature for unit, flag in _UNITS if unit.feature in features and flag and flag not in flags]
