"""Transposition of a small matrix in vector registers, as an LLVM function of two-operand shuffles.

Whole vectors are stored where a loop would store single elements a plane apart. The shuffles are of kinds that x86 and
AArch64 have as single instructions: interleaving within 128 bits, then picking every other 128 bits of two vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tvm_conv3d.schedules.llvm.passes.llvm_functions import TYPES

#: Bytes within which vectors are interleaved.
_CHUNK = 16


@dataclass(frozen=True)
class _Vector:
    """A register: its name in the text, and which (row, column) of the matrix each lane holds."""

    name: str
    lanes: tuple[tuple[int, int], ...]


@dataclass
class _Text:
    """The instructions written so far."""

    element: str
    lines: list[str] = field(default_factory=list)

    def shuffle(self, a: _Vector, b: _Vector, picks: Sequence[int]) -> _Vector:
        """The lanes `picks` of `a` and `b`, one after the other."""
        name = f"%s{len(self.lines)}"
        mask = ", ".join(f"i32 {pick}" for pick in picks)
        kind = f"<{len(a.lanes)} x {self.element}>"
        self.lines.append(f"{name} = shufflevector {kind} {a.name}, {kind} {b.name}, <{len(picks)} x i32> <{mask}>")
        both = a.lanes + b.lanes
        return _Vector(name, tuple(both[pick] for pick in picks))


@functools.cache
def transpose_function(dtype: str, rows: int, columns: int) -> tuple[str, str]:
    """Name and text of void(`rows` vectors of `columns` lanes, place, pitch): column c goes to place + c * pitch.

    Both numbers are powers of two; the pitch is in elements.
    """
    element, size = TYPES[dtype]
    name = f"tvm_conv3d_transpose_{dtype}_{rows}x{columns}"
    text = _Text(element)
    given = [_Vector(f"%v{r}", tuple((r, c) for c in range(columns))) for r in range(rows)]
    stores = []
    for c, vector in enumerate(_transposed(text, given, _CHUNK // size)):
        stores += [
            f"%o{c} = mul i64 %pitch, {c}",
            f"%p{c} = getelementptr {element}, ptr %place, i64 %o{c}",
            f"store <{rows} x {element}> {vector.name}, ptr %p{c}, align {size}",
        ]
    arguments = ", ".join(f"<{columns} x {element}> {vector.name}" for vector in given)
    body = "\n  ".join((*text.lines, *stores, "ret void"))
    return name, f"define void @{name}({arguments}, ptr %place, i64 %pitch) alwaysinline nounwind {{\n  {body}\n}}\n"


def _transposed(text: _Text, rows: list[_Vector], chunk: int) -> list[_Vector]:
    """The columns of a matrix whose rows are given."""
    height, width = len(rows), len(rows[0].lanes)
    if height > width:
        parts = [_transposed(text, rows[i : i + width], chunk) for i in range(0, height, width)]
        while len(parts) > 1:
            picks = range(2 * len(parts[0][0].lanes))
            parts = [
                [text.shuffle(a, b, picks) for a, b in zip(first, second, strict=True)]
                for first, second in zip(parts[::2], parts[1::2], strict=True)
            ]
        return parts[0]
    if height < width:
        squares = [[text.shuffle(row, row, range(i, i + height)) for row in rows] for i in range(0, width, height)]
        return [column for square in squares for column in _transposed(text, square, chunk)]
    return _square(text, rows, min(chunk, height))


def _square(text: _Text, rows: list[_Vector], chunk: int) -> list[_Vector]:
    """The same of a square matrix: squares of `chunk` within their chunks first, then the chunks among the vectors."""
    size = len(rows)
    groups = []
    for start in range(0, size, chunk):
        group = rows[start : start + chunk]
        unit = 1
        while unit < chunk:
            halves = [_interleave(size, chunk, unit, half) for half in (0, 1)]
            group = _step(text, group, halves)
            unit *= 2
        groups.append(sorted(group, key=_column))
    columns = []
    every_other = [[lane for lane in range(2 * size) if lane // chunk % 2 == odd] for odd in (0, 1)]
    for same_place in zip(*groups, strict=True):
        vectors = list(same_place)
        for _ in range((size // chunk).bit_length() - 1):
            vectors = _step(text, vectors, every_other)
        columns += vectors
    return sorted(columns, key=_column)


def _step(text: _Text, vectors: list[_Vector], masks: Sequence[Sequence[int]]) -> list[_Vector]:
    """Each pair of neighbours becomes two vectors; the first ones of all pairs come first."""
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    return [text.shuffle(a, b, mask) for mask in masks for a, b in pairs]


def _interleave(lanes: int, chunk: int, unit: int, half: int) -> list[int]:
    """Lanes of two vectors, in each chunk alternately units of one half of each vector's chunk."""
    return [
        vector * lanes + start + half * chunk // 2 + at + i
        for start in range(0, lanes, chunk)
        for at in range(0, chunk // 2, unit)
        for vector in (0, 1)
        for i in range(unit)
    ]


def _column(vector: _Vector) -> int:
    return vector.lanes[0][1]
