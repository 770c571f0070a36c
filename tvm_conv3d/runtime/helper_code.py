"""Machine code of functions that no plan describes, such as copies and checks: compiled once, kept on disk, loaded."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tvm_conv3d.engine import build, cache
from tvm_conv3d.engine.artifact import Artifact, check_versions, key_of
from tvm_conv3d.runtime import parallel
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.target.cpu import host_target

if TYPE_CHECKING:
    from tvm import IRModule


def pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    """Where the first elements of arrays lie, as this code takes it."""
    return [ctypes.c_void_p(array.__array_interface__["data"][0]) for array in arrays]


_modules: dict[str, Any] = process.keep("helper_code: loaded code", {})
_lock = ForkSafeLock()


class Request(NamedTuple):
    """The arguments of :func:`get`, which can be pickled where `make_module` can."""

    identity: Mapping[str, object]
    make_module: Callable[[], IRModule]
    without: Sequence[str]


_elsewhere: ContextVar[Callable[[Request], None] | None] = ContextVar("helper_code: who else compiles", default=None)


@contextlib.contextmanager
def compiled_by(have_made: Callable[[Request], None]) -> Iterator[None]:
    """Has code of this thread's calls made by another process, which has TVM's compiler loaded, where this one has not.

    Args:
        have_made: has a process call :func:`get`, which keeps the code on disk; what it fails to make is made here.
    """
    before = _elsewhere.set(have_made)
    try:
        yield
    finally:
        _elsewhere.reset(before)


def get(identity: Mapping[str, object], make_module: Callable[[], IRModule], without: Sequence[str] = ()) -> Any:
    """The loaded machine code of a module for this CPU: from this process, else from disk, else compiled and kept.

    Args:
        identity: all that the code depends on besides this CPU and the versions of TVM and this package, as JSON's
            types; its "name" tells people what it is. Where the code comes of Python that is none of
            :data:`tvm_conv3d.engine.artifact.COMPILING`, a text or number that changes with it belongs in here.
        make_module: declares the functions; a function of a module, or a partial of one.
        without: TVM's passes that find nothing to do in them.

    Raises:
        RuntimeError: the installed TVM is another version, or can't compile it.
    """
    identity = {**identity, "target": host_target(1).text}
    key = key_of(identity)
    found = _modules.get(key)
    if found is None:
        with _lock:
            found = _modules.get(key)
            if found is None:
                found = _modules[key] = _load(key, Request(identity, make_module, without))
    return found


def _compiled(request: Request) -> bytes:
    """Object code, made by a thread of its own.

    TVM's parser leaves cycles behind that hold the frames of all its callers, and so whatever tensors these had.
    """
    import tvm

    def compile_module() -> bytes:
        with tvm.transform.PassContext(disabled_pass=list(request.without)):
            return build.object_code(tvm.compile(request.make_module(), target=host_target(1).as_tvm()).mod)

    with ThreadPoolExecutor(1) as thread:
        try:
            compiled = thread.submit(compile_module)
        except RuntimeError:
            # the interpreter ends, and starts no more threads
            return compile_module()
        return compiled.result()


def _load(key: str, request: Request) -> Any:
    kept = _kept(key)
    have_made = _elsewhere.get()
    if kept is None and have_made is not None and "tvm" not in sys.modules:
        have_made(request)
        kept = _kept(key)
    if kept is not None:
        return kept
    check_versions()
    artifact = Artifact(_compiled(request), {}, "")
    cache.store(key, artifact, dict(request.identity))
    return parallel.link(artifact.object_code)


def _kept(key: str) -> Any:
    """The code on disk, loaded; None where there is none that loads."""
    artifact = cache.load(key)
    if artifact is not None:
        with contextlib.suppress(RuntimeError, ValueError, AttributeError):
            return parallel.link(artifact.object_code)
    return None
