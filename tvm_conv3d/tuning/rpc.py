"""Measuring on a remote device, through TVM's own RPC tracker.

The device runs `python -m tvm.exec.rpc_server --tracker HOST:PORT --key KEY`. Code is compiled and linked here: a C++
compiler for the device's architecture, named by $CXX, is needed here, and none there.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, KERNEL, PACK, PACKED_BIAS, PACKED_KERNEL, Function
from tvm_conv3d.engine.artifact import MAIN, Artifact
from tvm_conv3d.runtime import interchange
from tvm_conv3d.tuning.measure import INTERLEAVED_SECONDS, MAX_ROUNDS, MIN_ROUNDS, REPEAT_SECONDS, Bench, Request
from tvm_conv3d.tuning.workers import NoWorkerError, Worker, WorkerError, answer_requests

#: Seconds to wait for a free device at first.
_PATIENCE = 60

#: Seconds after which the device ends a session, whatever runs in it, and is free for the next one.
_SESSION = 360

#: Seconds that linking and the transfer may take on top of the measurement.
_TRANSFER = 30

_SET_THREADS = "runtime.config_threadpool"

_CONNECT = "connect"


class Device(ABC):
    """A session on a device behind a tracker, made anew before the device ends it.

    Args:
        host, port: of the tracker.
        key: of the devices to ask for.
        threads: that a kernel uses there.
    """

    def __init__(self, host: str, port: int, key: str, threads: int) -> None:
        self._address, self._key, self._threads = (host, port), key, threads
        self._session: Any = None
        self._ends = 0.0

    def ask(self, request: Request, timeout: float) -> list[float]:
        """A number for each plan."""
        if time.monotonic() + timeout > self._ends:
            self.connect()
        return self._perform(request)

    def connect(self) -> str:
        """Takes a device, waiting until one is free; returns its name.

        Raises:
            NoWorkerError: it can't run the code.
        """
        from tvm import rpc

        self._session = None
        tracker = rpc.connect_tracker(*self._address)
        self._session = tracker.request(self._key, session_timeout=_SESSION)
        self._ends = time.monotonic() + _SESSION
        # 1: no preference among kinds of cores
        self._session.get_function(_SET_THREADS)(1, self._threads)
        return self._describe()

    @abstractmethod
    def _describe(self) -> str:
        """The name of the device, once it can run the code."""

    @abstractmethod
    def _perform(self, request: Request) -> list[float]:
        """A number for each plan."""


@dataclass(frozen=True)
class _Kernel:
    """A kernel on the device.

    Attributes:
        module: its code.
        function: what it takes.
        tensors: its arguments, by name.
    """

    module: Any
    function: Function
    tensors: Mapping[str, Any]

    @property
    def arguments(self) -> Sequence[Any]:
        """In their order."""
        return self.function.ordered(self.tensors)


class CpuDevice(Device):
    """A device that runs TVM's own server."""

    def __init__(self, host: str, port: int, key: str, threads: int) -> None:
        super().__init__(host, port, key, threads)
        self._bench: Bench | None = None
        self._numbers = itertools.count()

    def _describe(self) -> str:
        return f"{self._key} behind {self._address[0]}"

    def _perform(self, request: Request) -> list[float]:
        spec = request.plans[0][0].spec
        if self._bench is None or self._bench.spec != spec:
            self._bench = Bench.of(spec)
        bench = self._bench
        ready = [self._upload(bench, artifact) for _, artifact in request.plans]
        if request.action == "error":
            return [self._error(bench, each) for each in ready]
        if request.action == "time":
            return [self._time(each, request.cutoff_seconds) for each in ready]
        first = [self._once(each, 1) for each in ready]
        counts = [max(1, math.ceil(REPEAT_SECONDS / max(seconds, 1e-9))) for seconds in first]
        a_round = sum(count * seconds for count, seconds in zip(counts, first, strict=True))
        rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, round(INTERLEAVED_SECONDS / max(a_round, 1e-9))))
        turns = [[self._once(each, n) for each, n in zip(ready, counts, strict=True)] for _ in range(rounds)]
        return [statistics.median(times) for times in zip(*turns, strict=True)]

    def _upload(self, bench: Bench, artifact: Artifact) -> _Kernel:
        """The kernel and its arguments on the device."""
        import tvm.runtime
        from tvm.support import cc

        # a name of its own: writing over a loaded library kills the process that runs it
        name = f"kernel{next(self._numbers)}.so"
        with tempfile.TemporaryDirectory(prefix="tvm_conv3d-") as folder:
            source, library = Path(folder) / "kernel.o", Path(folder) / name
            source.write_bytes(artifact.object_code)
            cc.create_shared(str(library), [str(source)], cc=os.environ.get("CXX"))
            self._session.upload(str(library))
        module = self._session.load_module(name)
        self._session.remove(name)
        device = self._session.cpu()

        def upload(function: Function, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
            views = {name: interchange.exportable(array, function[name].shape) for name, array in arrays.items()}
            return {name: tvm.runtime.tensor(np.ascontiguousarray(view), device) for name, view in views.items()}

        main, pack = artifact.functions[MAIN], artifact.functions.get(PACK)
        tensors = upload(main, bench.arguments(artifact))
        if pack is not None:
            packed = {a.name: tvm.runtime.empty(a.shape, a.dtype, device) for a in pack.of("output")}
            module[PACK](*pack.ordered({**upload(pack, bench.weights), **packed}))
            tensors.update({KERNEL: packed[PACKED_KERNEL], BIAS: packed[PACKED_BIAS]})
        return _Kernel(module, main, tensors)

    def _error(self, bench: Bench, kernel: _Kernel) -> float:
        kernel.module[MAIN](*kernel.arguments)
        if not all(np.isfinite(kernel.tensors[a.name].numpy()).all() for a in kernel.function.of("flags")):
            return math.inf
        return bench.error_of(
            {
                name: kernel.tensors[name].numpy().view(like.dtype).reshape(like.shape)
                for name, like in bench.results.items()
            }
        )

    def _time(self, kernel: _Kernel, cutoff_seconds: float) -> float:
        once = self._once(kernel, 1)
        if once > cutoff_seconds:
            return once
        count = max(1, math.ceil(REPEAT_SECONDS / max(once, 1e-9)))
        return min(self._once(kernel, count) for _ in range(3))

    def _once(self, kernel: _Kernel, count: int) -> float:
        evaluator = kernel.module.time_evaluator(MAIN, self._session.cpu(), number=count, repeat=1)
        return float(evaluator(*kernel.arguments).mean)


#: Makes a device of host, port, key and threads.
MakeDevice = Callable[[str, int, str, int], Device]


class RpcMeasurer:
    """Measures on a device behind an RPC tracker; stands in for the measuring process of this machine.

    It speaks to the device from a process of its own, which can be left when the device does not answer.

    Args:
        host, port: of the tracker.
        key: of the devices to ask for.
        threads: that a kernel uses there.
        kind: of device; made of these arguments, and importable by name.

    Raises:
        NoWorkerError: the tracker can't be reached, has no free device of that key, or the device can't run the code.
    """

    def __init__(self, host: str, port: int, key: str, threads: int, kind: MakeDevice = CpuDevice) -> None:
        self._name = f"No device {key!r} at the tracker {host}:{port}"
        self._worker = Worker(functools.partial(_serve, functools.partial(kind, host, port, key, threads)))
        self.device = self._connect(_PATIENCE)

    def ask(self, request: Request, timeout: float) -> list[float]:
        """A number for each plan; see :class:`tvm_conv3d.tuning.measure.Request`.

        Raises:
            WorkerError: the device reports an error or does not answer in `timeout` seconds.
            NoWorkerError: there is no device any more.
        """
        began = time.monotonic()
        try:
            return list(self._worker.ask((request, timeout), timeout + _TRANSFER))
        except WorkerError:
            # the next request gets a session of its own; a candidate that hangs holds the device until the old one ends
            self._worker.close()
            self._connect(_PATIENCE + (_SESSION if time.monotonic() - began >= timeout else 0))
            raise

    def close(self) -> None:
        """Gives the device back."""
        self._worker.close()

    def _connect(self, patience: float) -> str:
        """The name of the device."""
        try:
            return str(self._worker.ask(_CONNECT, patience))
        except WorkerError as error:
            self._worker.close()
            raise NoWorkerError(f"{self._name}: {error}.") from error
        except NoWorkerError:
            self._worker.close()
            raise


def _serve(make: Callable[[], Device], connection: Connection) -> None:
    """Passes requests on to the device: the process of :class:`RpcMeasurer`."""
    device = make()

    def handle(request: Any) -> str | list[float]:
        return device.connect() if request == _CONNECT else device.ask(*request)

    answer_requests(connection, handle)
