"""One pool of threads a process, which runs the parallel loops of all compiled functions.

TVM's runtime keeps a pool for each thread that ever called, for good: a server's short-lived threads leave theirs
behind until the system has none left. This one (`pool.ll`) has as many workers as the largest loop has asked for,
shared by all callers, and leaves the work to OpenMP's threads where the program uses them
(:mod:`tvm_conv3d.runtime.openmp`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tvm_conv3d.engine import cache
from tvm_conv3d.engine.artifact import Artifact, check_versions, key_of
from tvm_conv3d.engine.build import object_code
from tvm_conv3d.runtime import threads
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.target.cpu import host_target


class _Pool:
    """The pool's code in this process.

    Attributes:
        launch: address of what starts a loop.
        hook: object file that hands it to the functions it is loaded with.
    """

    def __init__(self) -> None:
        check_versions()
        module, _ = _loaded("pool.ll")
        self._module = process.keep("parallel: workers of the pool", module, module.get_function("forked"))
        self.launch = int(self._module.get_function("start")(ctypes.addressof(threads.SETTINGS)))
        _, self.hook = _loaded("hook.ll")
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


def _loaded(name: str) -> tuple[Any, bytes]:
    """The module of LLVM's text beside this one, and its object file: kept on disk, as TVM's compiler makes it."""
    path = Path(__file__).with_name(name)
    text = hashlib.sha256(path.read_bytes()).hexdigest()
    identity: dict[str, object] = {"name": name, "text": text, "target": host_target(1).text}
    key = key_of(identity)
    kept = cache.load(key)
    if kept is not None:
        # where it does not load, it is compiled anew
        with contextlib.suppress(RuntimeError, ValueError, AttributeError):
            return _load(kept.object_code), kept.object_code
    code = _compiled(path)
    cache.store(key, Artifact(code, {}, ""), identity)
    return _load(code), code


def _compiled(path: Path) -> bytes:
    """The object file of LLVM's text; it takes some hundredths of a second, and an import of TVM."""
    import tvm  # noqa: F401  (whose compiler reads LLVM's text)
    import tvm_ffi

    return object_code(tvm_ffi.load_module(str(path)))


def _load(*objects: bytes) -> Any:
    import tvm_ffi_orcjit

    _load_runtime()
    return tvm_ffi_orcjit.default_session().load_module(list(objects))


@functools.cache
def _load_runtime() -> None:
    """Loads TVM's runtime library, which holds the symbols that compiled code calls, as `import tvm` does."""
    from tvm_ffi.libinfo import load_lib_ctypes

    if "tvm" not in sys.modules:
        found = importlib.util.find_spec("tvm")
        folders = [] if found is None or found.origin is None else [Path(found.origin).parent / "lib"]
        if os.environ.get("TVM_LIBRARY_PATH"):
            folders.insert(0, Path(os.environ["TVM_LIBRARY_PATH"]))
        # where it lies elsewhere, TVM finds it
        with contextlib.suppress(RuntimeError, OSError):
            load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=folders)
            return
    # another thread may be importing it
    import_module("tvm")
