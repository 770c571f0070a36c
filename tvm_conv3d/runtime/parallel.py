"""One pool of threads a process, which runs the parallel loops of all compiled functions.

TVM's runtime keeps a pool for each thread that ever called, for good: a server's short-lived threads leave theirs
behind until the system has none left. This one (`pool.ll`) has as many workers as the largest loop has asked for,
shared by all callers, and leaves the work to OpenMP's threads where the program uses them
(:mod:`tvm_conv3d.runtime.openmp`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from tvm_conv3d.engine.artifact import check_versions
from tvm_conv3d.engine.build import object_code
from tvm_conv3d.runtime import threads
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock


class _Pool:
    """The pool's code in this process.

    Attributes:
        launch: address of what starts a loop.
        hook: object file that hands it to the functions it is loaded with.
    """

    def __init__(self) -> None:
        check_versions()
        module = _load(_compiled("pool.ll"))
        self._module = process.keep("parallel: workers of the pool", module, module.get_function("forked"))
        self.launch = int(self._module.get_function("start")(ctypes.addressof(threads.SETTINGS)))
        self.hook = _compiled("hook.ll")
        threads.tell_pool(self._module.get_function("set_count"))

    def workers(self) -> int:
        return int(self._module.get_function("workers")())


_made: list[_Pool] = process.keep("parallel: the pool", [])
_lock = ForkSafeLock()


def link(code: bytes) -> Any:
    """Loads an object file of compiled functions into this process, with their loops on the process's threads.

    No compiler or linker of the system is used.

    Raises:
        RuntimeError, ValueError: it is no object file of this machine, or the installed TVM is another version.
    """
    pool = _pool()
    module = _load(code, pool.hook)
    module.get_function("tvm_conv3d_launch_by")(pool.launch)
    return module


def workers() -> int:
    """Threads of the pool; OpenMP's and the callers are not among them."""
    return _pool().workers()


def _pool() -> _Pool:
    if not _made:
        with _lock:
            if not _made:
                _made.append(_Pool())
    return _made[0]


def _compiled(name: str) -> bytes:
    """The object file of LLVM's text beside this module; it takes some hundredths of a second."""
    import tvm  # noqa: F401  (whose compiler reads LLVM's text)
    import tvm_ffi

    return object_code(tvm_ffi.load_module(str(Path(__file__).with_name(name))))


def _load(*objects: bytes) -> Any:
    import tvm  # noqa: F401  (its runtime holds the symbols that the code calls)
    import tvm_ffi_orcjit

    return tvm_ffi_orcjit.default_session().load_module(list(objects))
