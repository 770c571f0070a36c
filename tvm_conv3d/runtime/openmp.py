"""The OpenMP runtime that another library has brought into the process, such as torch's.

Its idle threads spin for milliseconds after each parallel loop, on cores that a second pool's threads would need: in a
network of torch's operators and our convolutions these took twice their time. So our loops run on its threads.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OpenMP:
    """A loaded OpenMP runtime: GNU's, LLVM's or Intel's, which all have GNU's entry.

    Attributes:
        library: keeps it loaded.
        path: its file.
        of_torch: whether it came with torch.
        parallel: address of `GOMP_parallel`.
        thread_number: address of `omp_get_thread_num`.
        count: how many threads a parallel loop of the calling thread takes.
    """

    library: ctypes.CDLL
    path: str
    of_torch: bool
    parallel: int
    thread_number: int
    count: Callable[[], int]


def loaded() -> OpenMP | None:
    """The runtime that is loaded; torch's, where there are several; None without one."""
    import threadpoolctl

    torch = sys.modules.get("torch")
    found = [
        library
        for library in threadpoolctl.ThreadpoolController().lib_controllers
        if library.user_api == "openmp" and hasattr(library.dynlib, "GOMP_parallel")
    ]
    if not found:
        return None
    chosen = min(found, key=lambda library: not _belongs_to(library.filepath, torch))
    library = chosen.dynlib
    return OpenMP(
        library,
        chosen.filepath,
        _belongs_to(chosen.filepath, torch),
        _address(library.GOMP_parallel),
        _address(library.omp_get_thread_num),
        # torch sets OpenMP's own number only at a thread's first operator
        getattr(torch, "get_num_threads", None) or library.omp_get_max_threads,
    )


def _belongs_to(path: str, torch: Any) -> bool:
    """Whether a library lies in torch's own folders, `torch/lib` or `torch.libs`."""
    where = getattr(torch, "__file__", None)
    if where is None:
        return False
    folder = Path(where).parent
    return any(place in Path(path).parents for place in (folder, folder.with_name("torch.libs")))


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
