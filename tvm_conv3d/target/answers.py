"""What TVM and LLVM know of processors and targets, remembered on disk: asking takes an import of TVM.

Answers are found again by the versions of TVM, its libraries, and the CPU.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from tvm_conv3d.support import notes, process

#: Of the notes on disk.
_KIND = "answers"

#: Distributions whose versions answers depend on.
_DISTRIBUTIONS = ("apache-tvm", "apache-tvm-ffi", "tvm-conv3d")

#: Lines of Linux's description of a CPU that differ from one reading to the next.
_FLEETING = re.compile(r"^(cpu MHz|bogomips|BogoMIPS)\b.*\n?", re.MULTILINE)

_answers: dict[tuple[object, ...], Any] = process.keep("answers: of TVM and LLVM", {})

Answer = TypeVar("Answer")


def _remembered(ask: Callable[..., Answer]) -> Callable[..., Answer]:
    """`ask`, whose arguments are texts and whose answers JSON's types, but for what this machine answered before."""

    @functools.wraps(ask)
    def answer(*arguments: str) -> Answer:
        question = (ask.__name__, *arguments)
        if question not in _answers:
            key = _key(question)
            found = _kept(key)
            if found is None:
                found = [ask(*arguments)]
                if key is not None:
                    notes.store(_KIND, key, found)
            _answers[question] = found[0]
        return _answers[question]

    return answer


def _key(question: tuple[object, ...]) -> str | None:
    """Of an answer on disk; None where nothing can be remembered."""
    about = identity()
    return None if about is None else notes.key_of({"question": list(question), **about})


def _kept(key: str | None) -> list[Any] | None:
    """An answer on disk, in a list, as there may be nothing under a key."""
    found = None if key is None else notes.load(_KIND, key)
    return found if isinstance(found, list) else None


def are_at_hand() -> bool:
    """Whether this machine's processor was asked about before: its target takes no import of TVM."""
    question = (system_cpu.__name__,)
    return question in _answers or _kept(_key(question)) is not None


@_remembered
def system_cpu() -> str:
    """LLVM's name of this machine's processor."""
    from tvm.target import codegen

    return str(codegen.llvm_get_system_cpu())


@_remembered
def system_triple() -> str:
    """LLVM's triple of this machine."""
    from tvm.target import codegen

    return str(codegen.llvm_get_system_triple())


@_remembered
def is_valid_cpu(cpu: str, triple: str) -> bool:
    """Whether LLVM knows a processor of this name."""
    from tvm.target import codegen

    return bool(codegen.llvm_is_valid_cpu(cpu, triple))


@_remembered
def features(target: str) -> list[str]:
    """LLVM's names of what a target has, which is given as :attr:`tvm_conv3d.target.description.Target.text`."""
    from tvm.target import Target, codegen

    return sorted(map(str, codegen.llvm_get_cpu_features(Target(json.loads(target)))))


@_remembered
def exported(config: str) -> str:
    """The text of the target that TVM makes of a user's options, which are given as JSON.

    Raises:
        ValueError: TVM refuses them; other errors of TVM's own.
    """
    from tvm.target import Target

    from tvm_conv3d.target.description import Target as Description

    return Description.of_tvm(Target(json.loads(config))).text


@functools.cache
def identity() -> dict[str, object] | None:
    """What answers depend on besides the question; None where that is not known, and nothing can be remembered."""
    cpu = _cpu()
    try:
        versions = {name: metadata.version(name) for name in _DISTRIBUTIONS}
    except metadata.PackageNotFoundError:
        return None
    return None if cpu is None else {"versions": versions, "libraries": _libraries(), "cpu": cpu}


def _libraries() -> list[list[object]]:
    """TVM's compiler, where it lies: its version does not tell with which LLVM it was built."""
    spec = importlib.util.find_spec("tvm")
    folders = [Path(spec.origin).parent / "lib"] if spec is not None and spec.origin else []
    if os.environ.get("TVM_LIBRARY_PATH"):
        folders.append(Path(os.environ["TVM_LIBRARY_PATH"]))
    found = [(path, path.stat()) for folder in folders for path in sorted(folder.glob("*tvm_compiler*"))]
    return [[str(path), status.st_size, status.st_mtime_ns] for path, status in found]


def _cpu() -> str | None:
    """The processor as the system describes it, with its instructions; None where it does not."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return None
    return f"{platform.machine()}\n{_FLEETING.sub('', first)}" if first else None
