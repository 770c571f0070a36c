"""What a call on a GPU costs the CPU: `python scripts/cuda_host_cost.py`; needs torch.

Until a call returns, the next one can't be queued: kernels that are faster than this wait for it. Where there is a GPU,
calls are timed without waiting for it. Elsewhere, or with `--hollow`, the driver is a library whose functions return at
once, made with the C compiler, and tensors in the CPU's memory take the place of the GPU's: what is left is this
package's own work, torch's allocations (the CPU's for the GPU's) and the way into the driver.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tvm_conv3d import Conv3D
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.runtime.cuda import arrays, driver

#: Batches of calls, of which the median is told.
BATCHES = 9

#: Numbers of attributes by which a GPU tells its compute capability; the hollow one is an H100.
SOURCE = """
#include <stdint.h>
#include <stdlib.h>
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cuInit) NOTHING(cuDeviceGetName) NOTHING(cuFuncSetAttribute) NOTHING(cuLaunchKernel)
NOTHING(cuCtxPushCurrent_v2) NOTHING(cuCtxPopCurrent_v2) NOTHING(cuStreamSynchronize)
NOTHING(cuMemcpyHtoD_v2) NOTHING(cuMemcpyDtoH_v2) NOTHING(cuGetErrorString)
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)8; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)8; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)8; return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) { *address = (uint64_t)malloc(size); return 0; }
int cuMemFree_v2(uint64_t address) { free((void *)address); return 0; }
"""


class Case(NamedTuple):
    """A layer in channels_last, and its input."""

    name: str
    dtype: str
    filters: int
    shape: tuple[int, ...]


CASES = (
    Case("one kernel", "float16", 64, (1, 8, 28, 28, 64)),
    Case("sums in parts, two kernels", "float32", 64, (1, 4, 4, 4, 128)),
    Case("Winograd, three kernels", "float32", 64, (1, 8, 28, 28, 64)),
)


def hollow(folder: Path) -> None:
    """Puts a driver that does nothing in the place of the GPU's, and the CPU's tensors in that of the GPU's.

    Raises:
        SystemExit: there is no C compiler.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise SystemExit("A hollow driver needs a C compiler (cc, gcc or clang); none is on PATH.")
    source, library = folder / "hollow.c", folder / "libhollow.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-w", str(source), "-o", str(library)], check=True)
    # nobody else may find code that no compiler made
    os.environ["TVM_CONV3D_CACHE"] = str(folder / "cache")
    replaced: tuple[tuple[Any, str, Any], ...] = (
        (driver, "_LIBRARY", str(library)),
        (toolkit, "compile_cubin", lambda source, arch: b"hollow"),
        (arrays, "number_of", lambda tensor: int(tensor.get_device()) + 1),
        (torch._C, "_cuda_getCurrentRawStream", lambda device: 0),
    )
    for module, name, value in replaced:
        setattr(module, name, value)


def host_us_per_call(case: Case, device: str, calls: int) -> tuple[float, str]:
    """Microseconds until a call of a layer returns, and the layer's algorithm."""
    layer = Conv3D(case.filters, 3, padding="same", activation="relu", dtype=case.dtype, target="cuda")
    x = torch.rand(case.shape).to(getattr(torch, case.dtype)).to(device)
    found = []
    for batch in range(1 + BATCHES):
        if device == "cuda":
            # an empty queue: a full one makes calls wait
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            layer(x)
        if batch:
            found.append((time.perf_counter() - began) / calls)
    return 1e6 * statistics.median(found), layer.plan_for(case.shape).algorithm


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hollow", action="store_true", help="even where there is a GPU")
    parser.add_argument("--calls", type=int, default=500, metavar="N", help="of a batch; default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        device = "cuda" if torch.cuda.is_available() and not options.hollow else "cpu"
        if device == "cpu":
            hollow(Path(folder))
        print(f"| {'a hollow driver' if device == 'cpu' else driver.device(0).name} | algorithm | host_us_per_call |")
        print("|---|---|---|")
        with torch.inference_mode():
            for case in CASES:
                cost, algorithm = host_us_per_call(case, device, options.calls)
                print(f"| {case.name} | {algorithm} | {cost:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
