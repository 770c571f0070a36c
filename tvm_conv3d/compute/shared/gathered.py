"""What loops that gather cells are told: which cells each result takes along each axis, and in which pieces.

Pooling and interpolation are separable: a result takes some cells along the depth, some along the height and some along
the width, each by a factor, and combines them by a maximum or a sum. Tables say which, so that one function computes
all sizes, windows and ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tvm_conv3d.spec import Triple

#: How cells are combined: the largest one, the sum of cells times factors, or the last one as it is.
MAX, SUM, COPY = "max", "sum", "copy"

#: Bytes of a vector along the channels, and elements of one where there are few.
_VECTOR, _FEW = 64, 4

#: Cells along an axis, at most, for which there is code of its own: pools by 2, and both interpolations.
_MOST_TAPS = 2

#: Tasks, at most: each asks for the memory of a row in cache.
_TASKS = 256

#: Elements of the row in cache that a task goes through: usually, and at most.
_ROW, LONGEST_ROW = 1 << 12, 1 << 15

#: What the numbers begin with: tasks, pieces of rows that a task makes, all pieces, those of a row; sizes of the
#: result; elements of a sample of the input; channels; results at the end of a piece that are stored element by
#: element; where the table of each axis begins, and the numbers of a record in it, which are how many cells a result
#: takes, and the element with which each begins, counted along this axis only; where the table of the pieces begins.
(
    TASKS,
    TOGETHER,
    UNITS,
    PIECES,
    OUT_DEPTH,
    OUT_HEIGHT,
    OUT_WIDTH,
    SAMPLE,
    CHANNELS,
    SPARE,
    AT_DEPTH,
    RECORD_DEPTH,
    AT_HEIGHT,
    RECORD_HEIGHT,
    AT_WIDTH,
    RECORD_WIDTH,
    AT_PIECES,
    _HEADER,
) = range(18)

#: Numbers of a piece: its first result, the one behind its last, the element of a row of the input with which the cells
#: begin that it takes, and how many elements these have.
PIECE = 4


class Cells(NamedTuple):
    """Which cells each result takes along an axis.

    Attributes:
        counts: (results,), how many.
        places: (results, most), which; behind a result's count any cell near by.
        factors: (results, most), of the same.
    """

    counts: np.ndarray
    places: np.ndarray
    factors: np.ndarray


class Form(NamedTuple):
    """What the code of the loops depends on.

    Attributes:
        kind: how cells are combined.
        dtype: element type; of what is copied the unsigned integer of as many bits.
        lanes: elements of a vector along the channels.
        taps: cells that each result takes along each axis, where that is one small number; else 0.
    """

    kind: str
    dtype: str
    lanes: int
    taps: int

    @property
    def accumulator(self) -> str:
        """Element type in which cells are combined."""
        return self.dtype if self.kind == COPY else factors_of(self.dtype)


class Tables(NamedTuple):
    """What the loops read.

    Attributes:
        shape: of the result, (batch, depth, height, width, channels).
        form: of the loops.
        numbers: integers of 64 bits.
        factors: beside each cell's place among the numbers its factor, in the type in which cells are summed up.
    """

    shape: tuple[int, ...]
    form: Form
    numbers: np.ndarray
    factors: np.ndarray


def factors_of(dtype: str) -> str:
    """Element type of the factors of elements of type `dtype`."""
    return "float64" if dtype == "float64" else "float32"


def form_of(kind: str, dtype: str, channels: int, axes: Sequence[Cells]) -> Form:
    """The form of the loops for elements of a type; see :class:`Form`."""
    lanes = _VECTOR // np.dtype(Form(kind, dtype, 1, 0).accumulator).itemsize
    # no more than there are channels, unless these are very few
    while lanes > max(channels, _FEW):
        lanes //= 2
    taps = {int(count) for cells in axes for count in np.unique(cells.counts)}
    taps_of_all = taps.pop() if len(taps) == 1 else 0
    return Form(kind, dtype, lanes, taps_of_all if taps_of_all <= _MOST_TAPS else 0)


def tables(form: Form, batch: int, size: Triple, channels: int, axes: Sequence[Cells]) -> Tables:
    """The tables of an operator on (batch, depth, height, width, channels).

    Args:
        form: of the loops.
        batch, size, channels: of the input, each at least 1.
        axes: of depth, height and width.

    Raises:
        ValueError: the cells under one result are more than a task's row holds.
    """
    out_size = [len(cells.counts) for cells in axes]
    pieces = _pieces(axes[2], channels)
    steps = [math.prod(size[axis + 1 :]) * channels for axis in range(3)]
    records = [np.column_stack([c.counts, c.places * step]) for c, step in zip(axes, steps, strict=True)]
    begins = np.cumsum([_HEADER, *(record.size for record in records)]).tolist()
    # the last vector of a result may end in the results behind it, which are stored later
    spare = -(-(-channels % form.lanes) // channels)
    units = batch * out_size[0] * out_size[1] * len(pieces)
    together = -(-units // _TASKS)
    header = [
        -(-units // together),
        together,
        units,
        len(pieces),
        *out_size,
        math.prod(size) * channels,
        channels,
        spare,
    ]
    for begin, record in zip(begins[:3], records, strict=True):
        header += [begin, record.shape[1]]
    numbers = [np.array([*header, begins[3]]), *(record.ravel() for record in records), np.ravel(pieces)]
    factors = [np.zeros(_HEADER), *(np.insert(c.factors, 0, 0.0, axis=1).ravel() for c in axes)]
    shape = (batch, *out_size, channels)
    beside = np.concatenate(factors).astype(factors_of(form.dtype))
    return Tables(shape, form, np.concatenate(numbers).astype(np.int64), beside)


def _pieces(cells: Cells, channels: int) -> list[tuple[int, int, int, int]]:
    """A row of results in pieces whose cells fit into a task's row."""
    # as they rise along the row, whatever padding does to single windows
    first = np.minimum.accumulate(cells.places.min(1)[::-1])[::-1]
    last = np.maximum.accumulate(cells.places.max(1))
    widest = int((last - first).max()) + 1
    if widest * channels > LONGEST_ROW:
        raise ValueError(
            f"Windows of {widest} cells with {channels} channels are wider than the {LONGEST_ROW} elements of a row in "
            "cache."
        )
    pieces, begin = [], 0
    while begin < len(first):
        start = int(first[begin])
        end = max(begin + 1, int(np.searchsorted(last, start + _ROW // channels)))
        pieces.append((begin, end, start * channels, (int(last[end - 1]) + 1 - start) * channels))
        begin = end
    return pieces
