"""Machine code of functions that no plan describes, such as copies and checks: compiled once, kept on disk, loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from tvm_conv3d import build, cache, parallel
from tvm_conv3d.build import Artifact
from tvm_conv3d.locks import ForkSafeLock

_modules: dict[str, Any] = {}
_lock = ForkSafeLock()


def get(identity: Mapping[str, object], compile_code: Callable[[], bytes]) -> Any:
    """The loaded module of some machine code: from this process, else from disk, else compiled and kept.

    Args:
        identity: all that the code depends on besides the versions of TVM and this package, as JSON's types; its
            "name" tells people what it is. Where the code comes of Python that is no part of `compute` or
            `schedules`, a text or number that changes with it belongs in here.
        compile_code: makes the object file.

    Raises:
        RuntimeError: the installed TVM is another version, or can't compile it.
    """
    key = build.key_of(identity)
    found = _modules.get(key)
    if found is None:
        with _lock:
            found = _modules.get(key)
            if found is None:
                found = _modules[key] = _load(key, identity, compile_code)
    return found


def _load(key: str, identity: Mapping[str, object], compile_code: Callable[[], bytes]) -> Any:
    artifact = cache.load(key)
    if artifact is not None:
        # where it does not load, it is compiled anew
        with contextlib.suppress(RuntimeError, ValueError, AttributeError):
            return parallel.link(artifact.object_code)
    build.check_versions()
    artifact = Artifact(compile_code(), (), "")
    cache.store(key, artifact, dict(identity))
    return parallel.link(artifact.object_code)
