"""Weights that came without a version: told by their content, and kept with their packed forms for later calls.

A call that finds its weights' content here needs neither to look at their values nor to pack them. What is kept are
copies: whatever becomes of the caller's arrays, a content and its packed forms stay together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from tvm_conv3d.runtime import digest, folding, interchange, output_pool, structure
from tvm_conv3d.runtime.folding import BatchNorm
from tvm_conv3d.runtime.weights import Packed, Weights
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent

#: Bytes of weights and their packed forms that are kept, at most, unless the user says otherwise.
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


class Store:
    """Weights by content, the longest unused forgotten first; several threads may use it.

    Args:
        max_bytes: of copies and packed forms; what was asked for last is kept whatever it takes.
        max_entries: contents.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_entries: int = _MAX_ENTRIES) -> None:
        self._lock = ForkSafeLock()
        self._entries: OrderedDict[Hashable, Weights] = OrderedDict()
        self._trained: Recent[Hashable, Weights] = Recent(_MAX_PLACES)
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
            kernel, bias: arrays of any strides and real type; they may change after the call.
            dtype: which they are cast to.
            use: of equal contents, those of one use share their packed forms.
            norm: what is folded into them; they are kept as they are then, not as they came. Kernel and bias are of
                floating types with one.

        Raises:
            TypeError: they hold something other than real numbers or booleans.
            MemoryError: there is none for the copies.
            ValueError: the norm can't be folded into the weights.
        """
        if not digest.is_dense(kernel):
            kernel = np.ascontiguousarray(kernel)
        kind = (kernel.shape, kernel.strides, kernel.dtype, dtype, use)
        key = (*_content(kernel, bias, norm), kind)
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                return found
        kernel, bias = kernel.copy("K"), None if bias is None else bias.copy()
        norm = None if norm is None else norm._replace(values=norm.values.copy())
        made = _made(kernel, bias, dtype, norm, _Forms(self.trim))
        # of the copies: another thread may have changed the caller's arrays meanwhile
        key = (*_content(kernel, bias, norm), kind)
        with self._lock:
            found = self._entries.setdefault(key, made)
        self.trim()
        return found

    def trained(self, place: Hashable, weights: Weights) -> None:
        """Notes the content of weights in training, and forgets what they held before: it is not expected again.

        Args:
            place: whose content it is.
            weights: of :meth:`get`.
        """
        before = self._trained.get(place)
        if before is not weights:
            if before is not None:
                self._forget(before)
            self._trained.put(place, weights)

    def _forget(self, weights: Weights) -> None:
        with self._lock:
            for key, kept in self._entries.items():
                if kept is weights:
                    del self._entries[key]
                    return

    def trim(self) -> None:
        """Forgets what is too much."""
        with self._lock:
            sizes = {key: _nbytes(weights) for key, weights in self._entries.items()}
            total = sum(sizes.values())
            while len(self._entries) > 1 and (total > self.max_bytes or len(self._entries) > self._max_entries):
                key, _ = self._entries.popitem(last=False)
                total -= sizes[key]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            return sum(map(_nbytes, self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)


#: That of the process.
STORE = process.keep("kept_weights: weights by content", Store())


def set_kept_weights(most: int) -> None:
    """Sets how much memory the weights of :func:`tvm_conv3d.conv3d`, with their packed forms, may take between calls.

    Models whose weights take more are packed anew at each call.

    Args:
        most: bytes; 1 GiB at the start. The weights of the last call are kept in any case.

    Raises:
        ValueError: `most` is no integer of at least 0.
    """
    STORE.max_bytes = output_pool.check_bytes(most)
    STORE.trim()


def _content(kernel: np.ndarray, bias: np.ndarray | None, norm: BatchNorm | None) -> tuple[Hashable, ...]:
    of_norm = None if norm is None else (*_bytes(norm.values), *norm[1:])
    return digest.of(kernel), None if bias is None else _bytes(bias), of_norm


def _bytes(vector: np.ndarray) -> tuple[np.dtype, bytes]:
    return vector.dtype, vector.tobytes()


def _made(kernel: np.ndarray, bias: np.ndarray | None, dtype: str, norm: BatchNorm | None, forms: _Forms) -> Weights:
    if norm is not None:
        # what the values mean is seen before they are scaled
        return Weights(*folding.fold(kernel, bias, norm, dtype), object(), structure.structured(kernel), forms)
    prepared = interchange.prepare(kernel, dtype)
    values = None if bias is None else interchange.prepare(bias, dtype)
    return Weights(prepared, values, object(), structure.structured(prepared), forms)


def _nbytes(weights: Weights) -> int:
    forms = [] if weights.packed is None else weights.packed.values()
    of_bias = 0 if weights.bias is None else weights.bias.nbytes
    return weights.kernel.nbytes + of_bias + sum(form.nbytes for form in forms)
