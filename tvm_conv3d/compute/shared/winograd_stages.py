"""What Winograd's declarations share: the positions that tiles are made of, their weights, and the transforms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tvm import te, tirx

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import Matrix, amplification
from tvm_conv3d.compute.shared.elements import widen
from tvm_conv3d.compute.shared.stages import error_of_sums, zero_padded
from tvm_conv3d.compute.shared.winograd_axes import Axes
from tvm_conv3d.spec import CHANNELS_LAST

#: Rounding of the transforms and of the sums between them: as of so many more products in each sum, times a factor.
#: Fitted to 70 variants, kernels of 2 to 7 and 16 to 256 channels: none was more than a twentieth above the estimate.
_TRANSFORM_PRODUCTS, _TRANSFORM_FACTOR = 12, 0.92

Expr = Any  # a TVM expression; its classes are not public names


def gathered(
    spec: CanonicalSpec, axes: Axes, extents: Sequence[int], channels: int, x: te.Tensor, interleaved: int = 1
) -> Callable[[Expr, Sequence[Expr], Sequence[Expr], Expr], Expr]:
    """How a gathered position is read: (sample, part, position of that part, channel) -> input, or zero outside of it.

    Args:
        spec: the problem.
        axes: its modes.
        extents: positions of a part, per axis, from which on none is asked for.
        channels: the same of channels.
        x: the input.
        interleaved: groups of which the same channel lies side by side; the phases of so many groups' channels follow
            each other.
    """
    # as if the input were padded so that every gathered position and phase exists
    reach = [
        (e - 1) * step + (p - 1) * spread + parts
        for e, step, p, spread, parts in zip(extents, axes.step, axes.phases, axes.spread, axes.parts, strict=True)
    ]
    _, ph, pw = axes.phases
    several = math.prod(axes.phases) > 1
    together = spec.group_channels * interleaved

    def at(n: Expr, part: Sequence[Expr], position: Sequence[Expr], c: Expr) -> Expr:
        shared, within = 0, c
        if spec.groups > interleaved and (several or interleaved > 1):
            shared, within = c // (together * math.prod(axes.phases)), c % (together * math.prod(axes.phases))
        phase = (within // (together * pw * ph), within // (together * pw) % ph, within // together % pw)
        where = [
            p + i * step + (q * spread if several else 0)
            for p, i, step, q, spread in zip(part, position, axes.step, phase, axes.spread, strict=True)
        ]
        channel = within % together if several else within
        if interleaved > 1:
            channel = channel % interleaved * spec.group_channels + channel // interleaved
        channel = shared * together + channel

        def read(index: list[Expr]) -> Expr:
            place = (n, *index, channel) if spec.data_format == CHANNELS_LAST else (n, channel, *index)
            return widen(x[place], spec.dtype, spec.accumulator)

        inside = [c < axes.channels] if channels > axes.channels else []
        return zero_padded(spec, reach, where, read, inside)

    return at


def gathered_chunks(spec: CanonicalSpec, axes: Axes) -> tuple[int, int, int]:
    """What the channels of a gathered position are made of, of a single group in channels_last.

    Returns:
        Elements of a chunk, which lie side by side in the input, too; those of them that are of the same input
        position; number of chunks.
    """
    # neighbouring phases along the width are neighbouring positions
    beside = axes.phases[2] if axes.spread[2] == 1 else 1
    chunk = spec.channels * beside
    return chunk, spec.channels, axes.channels // chunk


def expected_error(spec: CanonicalSpec, products: int, sizes: Iterable[Sequence[int]], on_gpu: bool = False) -> float:
    """The relative error (2-norm) to expect of data and weights without structure.

    Args:
        spec: its types count.
        products: terms of a sum in the frequencies' products.
        sizes: m and r of F(m, r) along each transformed axis, and maybe its stride.
        on_gpu: where they are summed.
    """
    factor = math.prod(amplification(*size) for size in sizes)
    return error_of_sums(spec, products + _TRANSFORM_PRODUCTS, _TRANSFORM_FACTOR * factor, on_gpu)


@dataclass(frozen=True)
class Stage:
    """A tensor, read by calling it."""

    tensor: te.Tensor

    def __call__(self, *index: Expr) -> Expr:
        return self.tensor[index]


def transform(
    dtype: str, shape: tuple[int, ...], name: str, matrix: Matrix, read: Callable[..., Expr], from_end: int
) -> te.Tensor:
    """sum_i matrix[row, i] * read(i, ...), where the row is the index that is `from_end` before the end.

    It is declared as one expression for each row, of which one is left once the loop over rows is unrolled. Sums that
    two rows share are the same expression in both, and are computed once.
    """

    def at(*index: Expr) -> Expr:
        sums = row_sums(matrix, [read(i, *index) for i in range(len(matrix[0]))], lambda n: tirx.const(float(n), dtype))
        value = sums.pop()
        for row in reversed(range(len(sums))):
            value = tirx.Select(index[-from_end] == row, sums[row], value)
        return value

    return te.compute(shape, at, name=name, varargs_names=index_names(shape))


def row_sums(matrix: Matrix, values: Sequence[Expr], constant: Callable[[Fraction], Expr]) -> list[Expr]:
    """matrix x values, the sums and differences that opposite points have in common written alike.

    Two columns that differ in signs only are read as their values' sum and difference (the transforms of outputs); of
    two such rows one is a sum, the other a difference of the same two parts (those of inputs).
    """
    columns = [[row[i] for row in matrix] for i in range(len(values))]
    pairs = _opposites(columns)
    if pairs:
        return [_sum(_terms_of_pairs(row, values, pairs), constant) for row in matrix]
    sums: list[Expr] = [None] * len(matrix)
    for first, second in _opposites(matrix):
        terms = list(zip(matrix[first], values, strict=True))
        alike = [a == b for a, b in zip(matrix[first], matrix[second], strict=True)]
        common = _sum([t for t, same in zip(terms, alike, strict=True) if same], constant)
        other = _sum([t for t, same in zip(terms, alike, strict=True) if not same], constant)
        sums[first], sums[second] = common + other, common - other
    return [
        _sum(list(zip(row, values, strict=True)), constant) if done is None else done
        for row, done in zip(matrix, sums, strict=True)
    ]


def _opposites(vectors: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """Pairs of vectors with entries of the same magnitude, some with the same and some with opposite signs."""
    found: list[tuple[int, int]] = []
    for i, j in itertools.combinations(range(len(vectors)), 2):
        first, second = vectors[i], vectors[j]
        alike = sum(a == b != 0 for a, b in zip(first, second, strict=True))
        opposite = sum(a == -b != 0 for a, b in zip(first, second, strict=True))
        zeros = sum(a == b == 0 for a, b in zip(first, second, strict=True))
        if alike and opposite and alike + opposite + zeros == len(first) and not {i, j} & set(sum(found, ())):
            found.append((i, j))
    return found


def _terms_of_pairs(
    row: Sequence[Fraction], values: Sequence[Expr], pairs: Sequence[tuple[int, int]]
) -> list[tuple[Fraction, Expr]]:
    """The row's terms, those of a pair of columns as one."""
    second_of = dict(pairs)
    terms = []
    for i, number in enumerate(row):
        if i in second_of:
            other = second_of[i]
            both = values[i] + values[other] if number == row[other] else values[i] - values[other]
            terms.append((number, both))
        elif i not in second_of.values():
            terms.append((number, values[i]))
    return terms


def _sum(terms: Sequence[tuple[Fraction, Expr]], constant: Callable[[Fraction], Expr]) -> Expr:
    """The sum of numbers times values; multiplications by one are left out, and nothing begins with a minus."""
    present = sorted((t for t in terms if t[0]), key=lambda term: term[0] != 1)
    number, value = present[0]
    total = value if number == 1 else value * constant(number)
    for number, value in present[1:]:
        if abs(number) == 1:
            total = total + value if number > 0 else total - value
        else:
            total = total + value * constant(number)
    return total


def index_names(shape: Sequence[int]) -> list[str]:
    """A name for each axis."""
    return [f"i{number}" for number in range(len(shape))]
