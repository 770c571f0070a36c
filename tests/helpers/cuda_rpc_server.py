"""The server of a GPU's machine, with a GPU that is the CPU."""

from __future__ import annotations

import sys

from cuda_fakes import FakeDriver
from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.tuning import gpu_rpc


def offer_fake() -> None:
    """In the server's process."""
    fake = FakeDriver()
    driver.get = lambda: fake  # type: ignore[assignment]
    gpu_rpc.offer()


if __name__ == "__main__":
    sys.exit(gpu_rpc.serve(init=offer_fake))
