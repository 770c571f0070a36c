"""Plans and machine code that processes of their own make before they are needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import processes
from tvm_conv3d.engine import bounded
from tvm_conv3d.runtime import ahead, loader, threads
from tvm_conv3d.runtime.ahead import Compilers
from tvm_conv3d.runtime.compatibility import requested_target
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.folders import CACHE_VARIABLE

#: Layers that pack enough for there to be a choice.
SPECS = [
    Conv3DSpec.parse(f"n1_i4x4x4x64_o{filters}_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_nobias_linear")
    for filters in (64, 80, 96, 128)
]


@pytest.fixture(autouse=True)
def _two_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(ahead, "available_cpus", lambda: 2)
    return


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started."""
    found: list[Any] = []
    real = subprocess.Popen

    def noted(*given: Any, **more: Any) -> Any:
        found.append(real(*given, **more))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    return found


def test_plans_and_code_are_at_hand_afterwards(started: list[Any]) -> None:
    target = requested_target(None, threads.get_num_threads())
    told: list[tuple[int, int]] = []
    with Compilers() as compilers:
        compilers.plan(SPECS)
        assert [bounded.are_kept(spec, target) for spec in SPECS] == [True] * len(SPECS)
        found = [bounded.candidates(spec, target) for spec in SPECS]
        # of the second the smallest is wanted
        limits = [None, found[1][-1].packed_bytes, None, None]
        calls = list(zip(SPECS, limits, strict=True))
        plans = [bounded.plan_within(spec, target, limit) for spec, limit in calls]
        assert not any(loader.at_hand(plan, target) for plan in plans)
        compilers.compile(calls, lambda *numbers: told.append(numbers))
        assert all(loader.at_hand(plan, target) for plan in plans)
    assert told == [(done, len(SPECS)) for done in range(len(SPECS) + 1)]
    assert [process.poll() for process in started] == [0, 0]
    # what is there is not made again, and the plans are those that this process would make
    with Compilers() as compilers:
        compilers.plan(SPECS)
        compilers.compile(calls)
    assert len(started) == 2
    assert [bounded._found(each[0].plan, target, bounded.DEFAULT_LIMIT) for each in found] == found


def test_few_problems_are_left_to_the_call(started: list[Any]) -> None:
    with Compilers() as compilers:
        compilers.plan([*SPECS[:3], *SPECS[:3]])
        compilers.compile([(spec, None) for spec in SPECS[:3]])
    assert started == []


def test_processes_that_die_are_done_without(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Compilers() as compilers:
        compilers.plan(SPECS)
    assert [process.poll() for process in started] == [1, 1]
    monkeypatch.setattr(sys, "executable", "/there/is/none")
    with Compilers() as compilers:
        compilers.plan(SPECS)
    assert len(started) == 2


def test_the_compiler_is_not_loaded_where_a_network_is_called() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    code = """
import sys, torch
from torch.nn import Conv3d, InstanceNorm3d, ReLU, Sequential, Upsample
from tvm_conv3d.runtime import ahead
from tvm_conv3d.torch import accelerate
ahead.available_cpus = lambda: 2
widths = range({first}, {last})
convolutions = [Conv3d(width, width + 1, 3, padding=1) for width in widths]
net = Sequential(*convolutions, InstanceNorm3d({last}), ReLU(), Upsample(scale_factor=2, mode="trilinear"))
net = accelerate(net.eval())
with torch.inference_mode():
    for _ in range(2):
        net(torch.rand(1, {first}, 32, 32, 32))
assert net.report.replayed[0].reason is None
print("tvm" in sys.modules)
"""
    assert processes.run(code.format(first=8, last=13)).strip() == "False"
    # for one convolution no process starts
    assert processes.run(code.format(first=20, last=21)).strip() == "True"


def test_code_that_no_plan_describes_is_made_where_the_compiler_is() -> None:
    code = """
import sys, numpy
from tvm_conv3d.runtime import concatenation
from tvm_conv3d.runtime.ahead import Compilers
sys.executable = {executable!r}
{context}:
    found = concatenation.concatenate([numpy.full((1, 2, 2, 2, c), c, "float32") for c in range(1, {count})])
assert found[0, 0, 0, 0].tolist() == [c for c in range(1, {count}) for _ in range(c)]
print("tvm" in sys.modules)
"""
    # what TVM knows of this machine
    processes.run("from tvm_conv3d.target.cpu import host_target; host_target(1)")
    given = {"executable": sys.executable, "context": "with Compilers()"}
    assert processes.run(code.format(count=3, **given)).strip() == "False"
    assert processes.run(code.format(count=4, **given | {"context": "if True"})).strip() == "True"
    # processes that die, or that there are none of, leave it to the call
    for count, executable in enumerate(("/bin/false", "/there/is/none", ""), 5):
        assert processes.run(code.format(count=count, **given | {"executable": executable})).strip() == "True"
