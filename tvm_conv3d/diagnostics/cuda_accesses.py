"""What one warp asks of shared and global memory: bank conflicts and sectors, read from a kernel's index expressions.

A shared-memory request takes a wavefront for each 128 bytes at best, and one more for each further word that lanes ask
of the same bank. A global one moves sectors of 32 bytes (CUDA C++ Best Practices Guide, "Device Memory Accesses" and
"Shared Memory"; the names are Nsight Compute's).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tvm_conv3d.diagnostics.cuda_lanes import SAMPLES, SECTOR, WARP, Lanes, Request

#: Times the least, over which an access is told of.
WASTEFUL = 2

#: Bytes of a bank's word, and banks.
_WORD, _BANKS = 4, 32


@dataclass(frozen=True)
class Access:
    """One place in a kernel's source where memory is read or written, with all copies of it in unrolled loops.

    Attributes:
        kernel: its name.
        space: "shared" or "global".
        kind: "load" or "store".
        buffer: its name.
        bytes: of one lane.
        requests: of a warp that runs the whole kernel.
        found: wavefronts of a request in shared memory, sectors of one in global memory, on average.
        least: the same if lanes asked for as many distinct bytes side by side; of a buffer whose sectors hold also what
            no request needs (:mod:`tvm_conv3d.diagnostics.cuda_needed`), for as many needed ones.
    """

    kernel: str
    space: str
    kind: str
    buffer: str
    bytes: int
    requests: int
    found: float
    least: float

    @property
    def wasteful(self) -> bool:
        """Whether it takes over :data:`WASTEFUL` times its least."""
        return self.found > WASTEFUL * self.least


def accesses_of(
    kernel: str,
    function: Any,
    grid: Sequence[int],
    block: Sequence[int],
    shares: Mapping[str, float] = MappingProxyType({}),
) -> list[Access]:
    """The accesses of a device function, such as :func:`tvm_conv3d.engine.cuda.lower.device_functions` gives.

    Args:
        kernel: its name.
        function: the PrimFunc.
        grid: blocks along each axis.
        block: threads of a block along each axis.
        shares: of buffers in global memory, by name: the bytes of their sectors that are needed, as of
            :mod:`tvm_conv3d.diagnostics.cuda_needed`; of the others all are.
    """
    places: dict[tuple[object, ...], list[Request]] = {}
    for request in Lanes(grid, block).requests(function.body):
        alike = (request.space, request.kind, request.buffer, request.bytes, request.loops)
        places.setdefault(alike, []).append(request)
    return [_judged(kernel, requests, shares) for requests in places.values()]


def average(accesses: Iterable[Access], space: str) -> tuple[float, float] | None:
    """Found and least of a request in this space, over all requests; None where there is none."""
    some = [access for access in accesses if access.space == space]
    requests = sum(access.requests for access in some)
    if not requests:
        return None
    found, least = (sum(getattr(a, name) * a.requests for a in some) / requests for name in ("found", "least"))
    return found, least


def wavefronts(addresses: Sequence[int], width: int) -> tuple[int, int]:
    """Wavefronts of a shared-memory request, and the least for as many distinct bytes.

    Args:
        addresses: in bytes, of the lanes.
        width: bytes of each. As many lanes are served together as fill 128 bytes.
    """
    together = WARP * _WORD // max(_WORD, width)
    found = least = 0
    for start in range(0, len(addresses), together):
        words = {
            address // _WORD + word
            for address in addresses[start : start + together]
            for word in range(max(1, width // _WORD))
        }
        banks = [word % _BANKS for word in words]
        found += max(banks.count(bank) for bank in set(banks))
        least += -(-len(words) // _BANKS)
    return found, least


def sectors(addresses: Sequence[int], width: int, share: float = 1.0) -> tuple[int, int]:
    """Sectors of a global-memory request, and the least for as many distinct bytes; see :func:`wavefronts`.

    Where only a share of the bytes of a sector is needed, it is the least for as many needed ones; a request that asks
    for others, too, may take fewer.
    """
    moved = {address + byte for address in addresses for byte in range(width)}
    taken = len({byte // SECTOR for byte in moved})
    return taken, min(taken, math.ceil(len(moved) / (share * SECTOR)))


def _judged(kernel: str, requests: Sequence[Request], shares: Mapping[str, float]) -> Access:
    one = requests[0]
    share = shares.get(one.buffer, 1.0)

    def count(addresses: Sequence[int]) -> tuple[int, int]:
        return wavefronts(addresses, one.bytes) if one.space == "shared" else sectors(addresses, one.bytes, share)

    number = sum(request.count for request in requests)
    found = least = 0
    for request in requests:
        for addresses in request.addresses:
            taken, possible = count(addresses)
            found, least = found + request.count * taken, least + request.count * possible
    place = (kernel, one.space, one.kind, one.buffer, one.bytes)
    return Access(*place, number, found / (number * SAMPLES), least / (number * SAMPLES))
