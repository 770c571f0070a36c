"""Machine code of kernels on tensor cores, where it can be read: what is multiplied, copied and stored, and how."""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cuda_checks import default_plans
from tvm_conv3d.engine.cuda import places, toolkit
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.scheduling import scheduled_module
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST
from tvm_conv3d.target.resolve import resolve

LAYERS = Path(__file__).parents[2] / "scripts" / "layers.csv"

#: An instruction in nvdisasm's listing, after its place and its condition.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


def nvdisasm() -> str | None:
    """NVIDIA's disassembler: of a toolkit, of a wheel, or on PATH."""
    folders = [home / "bin" for home in places.homes()]
    folders += [folder for wheel in places.wheels() for folder in wheel.glob("*/bin")]
    return shutil.which("nvdisasm", path=":".join(map(str, folders))) or shutil.which("nvdisasm")


needs_nvdisasm = pytest.mark.skipif(
    nvdisasm() is None or toolkit.find_nvcc() is None,
    reason="needs nvcc, and nvdisasm: pip install nvidia-cuda-nvdisasm",
)


@needs_nvdisasm
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_tensor_cores_are_fed_by_wide_copies(arch: str, data_format: str, tmp_path: Path) -> None:
    """Four products for each read of fragments, copies past the registers, stores of 16 bytes, no local memory."""
    spec = next(
        replace(x.spec, dtype="float16", data_format=data_format) for x in read_csv(LAYERS) if x.name == "nnunet_s2"
    )
    target = resolve(f"cuda:{arch}", 1)
    (plan,) = default_plans([spec], f"cuda:{arch}")
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(toolkit.compile_cubin(lower(scheduled_module(plan, target), target).source, arch))
    listing = subprocess.run([str(nvdisasm()), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    # the product comes last where the input is turned before
    found = collections.Counter(_INSTRUCTION.findall(listing))

    def count(begin: str) -> int:
        return sum(number for name, number in found.items() if name.startswith(begin))

    assert count("HMMA.16816.F32") >= 4 * count("LDSM") > 0, found
    assert count("LDGSTS") == found["LDGSTS.E.BYPASS.128"] > 0, found
    assert count("STG") == found["STG.E.128"] > 0, found
    assert count("LDL") == count("STL") == count("LDG.E.U16") == 0, found
