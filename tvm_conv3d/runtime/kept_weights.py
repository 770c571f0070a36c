"""Weights that came without a version: told by their content, and kept with their packed forms for later calls.

A call that finds its weights' content here needs neither to look at their values nor to pack them. The values
themselves are the caller's alone: where they are to be packed once more, they are at hand, and are copied and told by
the copy's content again, so that a content and its packed forms stay together whatever becomes of the caller's arrays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from tvm_conv3d.runtime import digest, folding, interchange, output_pool, structure, watched_digest
from tvm_conv3d.runtime.folding import BatchNorm
from tvm_conv3d.runtime.weights import Packed, Shapes, Weights
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent

#: Bytes of packed forms that are kept, at most, unless the user says otherwise.
MAX_BYTES = 1 << 30

#: Contents that are kept, at most, and packed forms of each.
_MAX_ENTRIES, _MAX_FORMS = 1024, 32

#: Places of weights in training whose last content is known.
_MAX_PLACES = 4096


class _Forms(Recent[Hashable, Packed]):
    """Packed forms of one content; tells when there is one more."""

    def __init__(self, grown: Callable[[], None]) -> None:
        super().__init__(_MAX_FORMS)
        self._grown = grown

    def put(self, key: Hashable, value: Packed) -> None:
        super().put(key, value)
        self._grown()


class _Kept(NamedTuple):
    """What is known of a content; attributes as those of :class:`Weights`."""

    shapes: Shapes
    version: Hashable
    structured: bool
    packed: _Forms

    @property
    def nbytes(self) -> int:
        return sum(form.nbytes for form in self.packed.values())


class _KnownWeights(Weights):
    """Weights of a known content, whose values are the caller's arrays.

    Args:
        kept: what is known of them.
        copied: weights of copies of these arrays, by what is known of the copies' content.
    """

    def __init__(self, kept: _Kept, copied: Callable[[], Weights]) -> None:
        self.shapes, self.version, self.structured, self.packed = kept
        self._copied = copied
        self._copy: Weights | None = None

    @property
    def kernel(self) -> np.ndarray:
        return self.at_hand().kernel

    @property
    def bias(self) -> np.ndarray | None:
        return self.at_hand().bias

    def at_hand(self) -> Weights:
        if self._copy is None:
            self._copy = self._copied()
        return self._copy


class Place:
    """Weights where they lie, to be found unchanged at later calls.

    Attributes:
        weights: of the content that lies there.

    Args:
        whole: what they are a part of; its values are read again where they may have changed only
            (:mod:`watched_digest`).
        found: its digest.
        vectors: small arrays that belong to them, each with its content.
        is_kept: whether what is known of the content still is.
    """

    def __init__(
        self,
        weights: Weights,
        whole: np.ndarray,
        found: bytes,
        vectors: Sequence[tuple[np.ndarray, bytes]],
        is_kept: Callable[[], bool],
    ) -> None:
        self.weights = weights
        self._whole, self._digest, self._vectors, self._is_kept = whole, found, vectors, is_kept

    def holds(self) -> bool:
        """Whether they are what they were, and their packed forms are kept; which then are among the last to go."""
        return (
            watched_digest.of(self._whole) == self._digest
            and all(vector.tobytes() == content for vector, content in self._vectors)
            and self._is_kept()
        )


class Store:
    """Weights by content, the longest unused forgotten first; several threads may use it.

    Args:
        max_bytes: of packed forms; what was asked for last is kept whatever it takes.
        max_entries: contents.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_entries: int = _MAX_ENTRIES) -> None:
        self._lock = ForkSafeLock()
        self._entries: OrderedDict[Hashable, _Kept] = OrderedDict()
        #: of a place the version of its last content
        self._trained: Recent[Hashable, Hashable] = Recent(_MAX_PLACES)
        self._max_entries = max_entries
        self.max_bytes = max_bytes

    def get(
        self,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        dtype: str,
        use: Hashable,
        norm: BatchNorm | None = None,
    ) -> Weights:
        """The weights with what is kept of their content.

        Args:
            kernel, bias: arrays of any strides and real type; they may change when the weights are not used any more.
            dtype: which they are cast to.
            use: of equal contents, those of one use share their packed forms.
            norm: what is folded into them. Kernel and bias are of floating types with one.

        Raises:
            TypeError: they hold something other than real numbers or booleans.
            MemoryError: there is none for the copies.
            ValueError: the norm can't be folded into the weights.
        """
        kernel = _dense(kernel)
        kind = _kind(kernel, dtype, use)
        found = self._find((watched_digest.of(kernel), *_content(bias, norm), kind))

        def copied() -> Weights:
            return self._copied(kernel, bias, dtype, norm, kind)

        return copied() if found is None else _KnownWeights(found, copied)

    def place(
        self,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        dtype: str,
        use: Hashable,
        norm: BatchNorm | None,
        vectors: Sequence[tuple[np.ndarray, bytes]],
        whole: np.ndarray,
    ) -> Place | None:
        """Where the weights of :meth:`get` lie; None where nothing is kept of their content.

        Args:
            kernel, bias, dtype, use, norm: as of :meth:`get`.
            vectors: what bias and norm are made of, where it lies, each with its content before they were made: what is
                written meanwhile is found to differ.
            whole: what the kernel is a part of, or the kernel; dense.
        """
        # before anything is made of it, too
        found, dense = watched_digest.of(whole), _dense(kernel)
        kind = _kind(dense, dtype, use)
        key = (watched_digest.of(dense), *_content(bias, norm), kind)
        kept = self._find(key)
        if kept is None:
            return None
        weights = _KnownWeights(kept, lambda: self._copied(_dense(kernel), bias, dtype, norm, kind))
        return Place(weights, whole, found, vectors, lambda: self._find(key) is kept)

    def _find(self, key: Hashable) -> _Kept | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
        return found

    def _copied(
        self, kernel: np.ndarray, bias: np.ndarray | None, dtype: str, norm: BatchNorm | None, kind: Hashable
    ) -> Weights:
        """Weights of copies, whose content is kept from now on."""
        kernel, bias = kernel.copy("K"), None if bias is None else bias.copy()
        norm = None if norm is None else norm._replace(values=norm.values.copy())
        # of the copies: another thread may change the caller's arrays meanwhile
        key = (digest.of(kernel), *_content(bias, norm), kind)
        values = _values(kernel, bias, dtype, norm)
        kept = self._find(key)
        if kept is None:
            # what the values mean is seen before they are scaled
            seen = values[0] if norm is None else kernel
            shapes = values[0].shape, None if values[1] is None else values[1].shape
            made = _Kept(shapes, object(), structure.structured(seen), _Forms(self.trim))
            with self._lock:
                kept = self._entries.setdefault(key, made)
            self.trim()
        return Weights(*values, kept.version, kept.structured, kept.packed)

    def trained(self, place: Hashable, weights: Weights) -> None:
        """Notes the content of weights in training, and forgets what they held before: it is not expected again.

        Args:
            place: whose content it is.
            weights: of :meth:`get`.
        """
        before = self._trained.get(place)
        if before is not weights.version:
            if before is not None:
                self._forget(before)
            self._trained.put(place, weights.version)

    def _forget(self, version: Hashable) -> None:
        with self._lock:
            for key, kept in self._entries.items():
                if kept.version is version:
                    del self._entries[key]
                    return

    def trim(self) -> None:
        """Forgets what is too much."""
        with self._lock:
            sizes = {key: kept.nbytes for key, kept in self._entries.items()}
            total = sum(sizes.values())
            while len(self._entries) > 1 and (total > self.max_bytes or len(self._entries) > self._max_entries):
                key, _ = self._entries.popitem(last=False)
                total -= sizes[key]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            return sum(kept.nbytes for kept in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


#: That of the process.
STORE = process.keep("kept_weights: weights by content", Store())


def set_kept_weights(most: int) -> None:
    """Sets how much memory packed weights of :func:`tvm_conv3d.conv3d` and of torch's modules may take between calls.

    Models whose weights take more are packed anew at each call.

    Args:
        most: bytes; 1 GiB at the start. The weights of the last call are kept in any case.

    Raises:
        ValueError: `most` is no integer of at least 0.
    """
    STORE.max_bytes = output_pool.check_bytes(most)
    STORE.trim()


def _dense(kernel: np.ndarray) -> np.ndarray:
    """The kernel, or a copy where other elements lie between its own."""
    return kernel if digest.is_dense(kernel) else np.ascontiguousarray(kernel)


def _kind(kernel: np.ndarray, dtype: str, use: Hashable) -> Hashable:
    return kernel.shape, kernel.strides, kernel.dtype, dtype, use


def _content(bias: np.ndarray | None, norm: BatchNorm | None) -> tuple[Hashable, ...]:
    of_norm = None if norm is None else (*_bytes(norm.values), *norm[1:])
    return None if bias is None else _bytes(bias), of_norm


def _bytes(vector: np.ndarray) -> tuple[np.dtype, bytes]:
    return vector.dtype, vector.tobytes()


def _values(
    kernel: np.ndarray, bias: np.ndarray | None, dtype: str, norm: BatchNorm | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Kernel and bias as they are packed."""
    if norm is not None:
        return folding.fold(kernel, bias, norm, dtype)
    # results are of other sizes: what is theirs would lie idle
    cast = None if bias is None else interchange.prepare(bias, dtype, np.empty)
    return interchange.prepare(kernel, dtype, np.empty), cast
