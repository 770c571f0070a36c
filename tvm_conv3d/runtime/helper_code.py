"""Machine code of functions that no plan describes, such as copies and checks: compiled once, kept on disk, loaded."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

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


def get(identity: Mapping[str, object], make_module: Callable[[], IRModule], without: Sequence[str] = ()) -> Any:
    """The loaded machine code of a module for this CPU: from this process, else from disk, else compiled and kept.

    Args:
        identity: all that the code depends on besides this CPU and the versions of TVM and this package, as JSON's
            types; its "name" tells people what it is. Where the code comes of Python that is none of
            :data:`tvm_conv3d.engine.artifact.COMPILING`, a text or number that changes with it belongs in here.
        make_module: declares the functions.
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
                found = _modules[key] = _load(key, identity, lambda: _compiled(make_module, without))
    return found


def _compiled(make_module: Callable[[], IRModule], without: Sequence[str]) -> bytes:
    """Object code, made by a thread of its own.

    TVM's parser leaves cycles behind that hold the frames of all its callers, and so whatever tensors these had.
    """
    import tvm

    def compile_module() -> bytes:
        with tvm.transform.PassContext(disabled_pass=list(without)):
            return build.object_code(tvm.compile(make_module(), target=host_target(1).as_tvm()).mod)

    with ThreadPoolExecutor(1) as thread:
        try:
            compiled = thread.submit(compile_module)
        except RuntimeError:
            # the interpreter ends, and starts no more threads
            return compile_module()
        return compiled.result()


def _load(key: str, identity: Mapping[str, object], compile_code: Callable[[], bytes]) -> Any:
    artifact = cache.load(key)
    if artifact is not None:
        # where it does not load, it is compiled anew
        with contextlib.suppress(RuntimeError, ValueError, AttributeError):
            return parallel.link(artifact.object_code)
    check_versions()
    artifact = Artifact(compile_code(), {}, "")
    cache.store(key, artifact, dict(identity))
    return parallel.link(artifact.object_code)
