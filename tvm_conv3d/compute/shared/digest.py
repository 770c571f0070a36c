"""A 64-bit digest of each chunk of some bytes: the rounds of XXH64 in as many lanes as fill vectors.

Every step is one-to-one in what it mixes, for a given other operand: bytes that differ within one word of eight never
have the same digest, and others have by accident only, with a chance of 2^-64.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.script import tirx as T

from tvm_conv3d.compute.shared import pointers

Expr = Any  # a TVM expression; its classes are not public names

#: Words of 64 bits that a step of the main loop takes; four vectors of 512 bits, as each waits for its last product.
_LANES = 32

#: Bytes of such a step.
_STEP = 8 * _LANES


def _signed(value: int) -> int:
    """The bits of an unsigned number as TVM writes them."""
    return value - (1 << 64) if value >> 63 else value


#: XXH64's primes.
_P1, _P2, _P3, _P4, _P5 = map(
    _signed,
    (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5),
)


def module() -> IRModule:
    """The function digest(data, size, chunk, digests): of `size` bytes, in chunks of `chunk` bytes, one word each.

    `data` and `digests` are addresses, the former of any alignment; `chunk` is a multiple of 256.
    """

    @T.prim_func
    def digest(data: T.handle, size: T.int64, chunk: T.int64, digests: T.handle):  # type: ignore[no-untyped-def]
        words = pointers.elements(data, "int64", align=1)
        octets = pointers.elements(data, "uint8", align=1)
        out = pointers.elements(digests, "int64", align=8)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            for task in T.parallel(T.max(T.int64(1), (size + chunk - 1) // chunk)):
                lanes = T.alloc_buffer((_LANES,), "int64")
                first: T.let = task * (chunk // 8)
                length: T.let = T.min(chunk, size - task * chunk)
                for lane in T.vectorized(_LANES):
                    lanes[lane] = task + T.Cast("int64", lane) * T.int64(_P1)
                for step in range(length // _STEP):
                    for lane in T.vectorized(_LANES):
                        lanes[lane] = _round(lanes[lane], words[first + step * _LANES + lane])
                total: T.int64 = size + T.int64(_P5)
                for lane in range(_LANES):
                    total = (total ^ _round(T.int64(0), lanes[lane])) * T.int64(_P1) + T.int64(_P4)
                for word in range(length // _STEP * _LANES, length // 8):
                    total = _rotated(total ^ _round(T.int64(0), words[first + word]), 27) * T.int64(_P1) + T.int64(_P4)
                for octet in range(length // 8 * 8, length):
                    value: T.let = T.Cast("int64", octets[task * chunk + octet])
                    total = _rotated(total ^ (value * T.int64(_P5)), 11) * T.int64(_P1)
                total = _folded(total, 33) * T.int64(_P2)
                total = _folded(total, 29) * T.int64(_P3)
                out[task] = _folded(total, 32)

    return pointers.module({"digest": digest})


def _round(lane: Expr, word: Expr) -> Expr:
    return _rotated(lane + word * T.int64(_P2), 31) * T.int64(_P1)


def _rotated(value: Expr, bits: int) -> Expr:
    value = T.Cast("uint64", value)
    return T.Cast("int64", (value << T.uint64(bits)) | (value >> T.uint64(64 - bits)))


def _folded(value: Expr, bits: int) -> Expr:
    return value ^ T.Cast("int64", T.Cast("uint64", value) >> T.uint64(bits))
