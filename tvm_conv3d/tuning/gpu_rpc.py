"""Measuring on a GPU behind TVM's RPC tracker: the tuner's side, and the server of the GPU's machine.

There `python -m tvm_conv3d.tuning.gpu_rpc --tracker HOST:PORT --key KEY` runs: a server of TVM's that knows how to load
and time this package's code. Beside the package it needs the GPU's driver only.
"""

from __future__ import annotations

import argparse
import functools
import json
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.target.gpu import GpuTraits, known
from tvm_conv3d.tuning.arguments import address
from tvm_conv3d.tuning.measure import Bench, Request, perform
from tvm_conv3d.tuning.rpc import Device, RpcMeasurer
from tvm_conv3d.tuning.workers import NoWorkerError

#: What the server offers: measuring, and facts of its GPU.
_MEASURE, _FACTS = "tvm_conv3d.measure", "tvm_conv3d.gpu"


class GpuDevice(Device):
    """A GPU whose machine runs this module.

    Args:
        arch: that code is compiled for.
        host, port, key, threads: see :class:`tvm_conv3d.tuning.rpc.Device`.
    """

    def __init__(self, arch: str, host: str, port: int, key: str, threads: int) -> None:
        super().__init__(host, port, key, threads)
        self._arch = arch

    def _describe(self) -> str:
        try:
            facts_of = self._session.get_function(_FACTS)
        except AttributeError as error:
            host, port = self._address
            raise NoWorkerError(
                f"The device {self._key!r} runs a server that can't measure GPUs. Run there: python -m {__name__} "
                f"--tracker {host}:{port} --key {self._key}"
            ) from error
        facts = json.loads(facts_of(self._arch))
        if "problem" in facts:
            raise NoWorkerError(f"On the device {self._key!r}: {facts['problem']}")
        return str(facts["name"])

    def _perform(self, request: Request) -> list[float]:
        answer = json.loads(self._session.get_function(_MEASURE)(bytearray(pickle.dumps(request))))
        if "problem" in answer:
            # in one line, as of several only the last is passed on
            raise RuntimeError(f"on the device: {' '.join(answer['problem'].split())}")
        return [float(number) for number in answer["numbers"]]


class GpuRpcMeasurer(RpcMeasurer):
    """Measures on a remote GPU.

    Args:
        host, port: of the tracker.
        key: of the devices to ask for.
        traits: of the architecture that code is compiled for.

    Raises:
        NoWorkerError: the tracker can't be reached, has no free device of that key, or the device can't run the code.
    """

    def __init__(self, host: str, port: int, key: str, traits: GpuTraits) -> None:
        super().__init__(host, port, key, threads=1, kind=functools.partial(GpuDevice, traits.name))


def offer() -> None:
    """Registers what the server offers; the GPU is not touched before a session asks, in a process of its own."""
    import tvm

    benches: dict[str, Bench] = {}

    def measure(data: bytes) -> str:
        request: Request = pickle.loads(bytes(data))
        spec = request.plans[0][0].spec
        if spec.key() not in benches:
            benches.clear()
            benches[spec.key()] = Bench.of(spec)
        return _answer(lambda: {"numbers": perform(request, benches[spec.key()])})

    tvm.register_global_func(_MEASURE, measure, override=True)
    tvm.register_global_func(_FACTS, lambda arch: _answer(lambda: _facts(arch)), override=True)


def _answer(work: Callable[[], dict[str, Any]]) -> str:
    try:
        return json.dumps(work())
    except (ValueError, RuntimeError, MemoryError) as error:
        return json.dumps({"problem": str(error)})


def _facts(arch: str) -> dict[str, Any]:
    driver.check_runs_here(known(arch))
    return {"name": driver.device(0).name}


def serve(arguments: Sequence[str] | None = None, init: Callable[[], None] = offer) -> int:
    """Runs the server until it is interrupted; returns the exit status.

    Args:
        arguments: of the command line.
        init: what the server's process does first.
    """
    found = argparse.ArgumentParser(description="Lends this machine's GPU to tuners, by TVM's RPC tracker.")
    found.add_argument("--tracker", type=address, required=True, metavar="HOST:PORT", help="whose clients are trusted")
    found.add_argument("--key", default="default", metavar="KEY", help="of this device; default: %(default)s")
    found.add_argument("--host", default="0.0.0.0", help="to listen at; default: %(default)s")
    found.add_argument("--port", type=int, default=9090, help="the first that is tried; default: %(default)s")
    options = found.parse_args(arguments)
    from tvm import rpc

    ports = options.port, options.port + 100
    server = rpc.Server(options.host, *ports, False, options.tracker, options.key, server_init_callback=init)
    print(f"Port {server.port}, key {options.key!r}. Ctrl-C ends it.", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        server.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(serve())
