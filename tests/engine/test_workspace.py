"""The memory of intermediates: counted, bounded, and an error in words where there is none."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from problems import BOUNDS, data, specs
from tvm_conv3d import Conv3D
from tvm_conv3d.engine import cache, planner, records, scheduling, workspace
from tvm_conv3d.engine.artifact import artifact_key
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.engine.records import RecordWarning
from tvm_conv3d.engine.workspace import Workspace
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import executor as runtime
from tvm_conv3d.runtime import interchange, loader
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec, same_padding
from tvm_conv3d.target.cpu import host_target
from tvm_conv3d.target.resolve import instruction_set, target_key

LAYER = Conv3DSpec(1, (8, 14, 14), 64, 64, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]
SMALL = Conv3DSpec(1, (2, 7, 7), 96, 32, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]


def direct(spec: Conv3DSpec, **changes: object) -> Plan:
    plan = default_plan(spec, host_target(2), exact=True)
    return replace(plan, variant=replace(plan.variant, **changes))


def allocated_when_lowered(plan: Plan) -> tuple[int, int]:
    """Bytes that the code asks TVM's runtime for: outside of and inside the loop over tasks."""
    import tvm
    from tvm import tirx

    target = host_target(2).as_tvm()
    module = tirx.transform.BindTarget(target.with_host(target))(scheduling.scheduled_module(plan, host_target(2)))
    pipeline, finish, _ = tirx.get_default_tir_pipeline(target)
    with tvm.transform.PassContext():
        lines = finish()(pipeline(module)).script().splitlines()
    inside, depth, found = False, 0, [0, 0]
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if inside and line.strip() and indent <= depth:
            inside = False
        if "T.parallel(" in line:
            inside, depth = True, indent
        for size in re.findall(r"AllocWorkspace\(\d+, \w+, T.uint64\((\d+)\)", line):
            found[inside] += int(size)
    return found[0], found[1]


def test_a_padded_copy_of_each_task() -> None:
    plan = direct(LAYER, gather="task", rows=1, columns=14, vectors=2, order="filters_spatial")
    plan = replace(plan, decisions={"depth": 2, "rows": 7, "columns": 1, "unroll": 1})
    lanes = plan.variant.lanes
    found = planner.workspace_of(plan, host_target(2))
    # sums of 1,728 terms: those of a part, and the totals
    assert found == Workspace(0, 4 * (4 * 9 * 16 * 64 + 2 * 14 * 2 * lanes))
    assert allocated_when_lowered(plan) == (found.shared, found.own)


def test_a_padded_copy_of_all() -> None:
    plan = direct(LAYER, gather="root", rows=1, columns=14)
    found = planner.workspace_of(plan, host_target(2))
    assert found.shared == 4 * 10 * 16 * 16 * 64
    assert allocated_when_lowered(plan)[0] == found.shared
    assert found.per_thread(2) == found.shared // 2 + found.own


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs())
def test_never_less_than_is_allocated(spec: Conv3DSpec) -> None:
    for exact in (True, False):
        plan = default_plan(spec, host_target(2), exact)
        found, lowered = planner.workspace_of(plan, host_target(2)), allocated_when_lowered(plan)
        # a loop of one task is no loop any more, and its memory not a task's
        assert found.shared + found.own >= sum(lowered)
        assert found.shared >= lowered[0] or lowered[1] == 0
        # the quick bound leaves out the registers of a tile
        quick = planner.bytes_per_thread(plan, host_target(2), enough=1 << 62)
        assert quick >= found.per_thread(2) - (16 << 10)


def test_known_again_without_scheduling(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, target = direct(SMALL), host_target(2)
    loader.get_loaded(plan, target)
    counted = workspace.of_small_buffers(scheduling.with_small_buffers(scheduling.scheduled_module(plan, target)))
    monkeypatch.setattr(scheduling, "scheduled_module", None)
    assert planner.workspace_of(plan, target) == counted
    assert cache.workspace(artifact_key(plan, target)) == counted


@pytest.mark.parametrize("exact", [True, False])
def test_another_plan_within_the_limit(exact: bool) -> None:
    spec, target = replace(LAYER, size=(16, 28, 28), channels=128, filters=128), host_target(2)
    usual = planner.bytes_per_thread(default_plan(spec, target, exact), target)
    limit = usual // 3
    plan = default_plan(spec, target, exact, limit)
    assert planner.bytes_per_thread(plan, target) <= limit
    x, kernel, bias = data(spec)
    executor = runtime.Executor(accuracy="strict" if exact else "default", workspace_limit=limit)
    assert executor.plan_for(spec) == plan
    result = executor.convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    assert oracle.relative_error(result, oracle.convolve(spec, x, kernel, bias)) < 1e-5


def test_a_copy_of_each_task_where_one_of_all_is_too_large() -> None:
    """A few output cells under a large dilation: the default copies the whole input at once."""
    size, kernel, dilation = (32, 32, 32), (3, 3, 3), (15, 15, 15)
    spec, target = Conv3DSpec(1, size, 16, 8, kernel, dilation=dilation), host_target(2)
    spec = replace(spec, pads=same_padding(size, kernel, (1, 1, 1), dilation))
    plan = default_plan(spec, target, True, 12 << 20)
    assert planner.bytes_per_thread(plan, target) <= 12 << 20
    executor = runtime.Executor(workspace_limit=12 << 20)
    x, weights, bias = data(spec)
    result = executor.convolve(spec, interchange.wrap(x), Weights(weights, bias, 0))
    assert oracle.relative_error(result, oracle.convolve(spec, x, weights, bias)) < BOUNDS["float32"]


def test_no_plan_within_the_limit() -> None:
    layer = Conv3D(32, 3, padding="same", workspace_limit=1000)
    with pytest.raises(ValueError, match=r"at least \d+ bytes a thread.*Pass.*Received: workspace_limit=1000") as error:
        layer(np.ones((1, 2, 7, 7, 96), np.float32))
    needed = int(re.findall(r"at least (\d+)", str(error.value))[0])
    enough = Conv3D(32, 3, padding="same", workspace_limit=needed)
    assert enough(np.ones((1, 2, 7, 7, 96), np.float32)).shape == (1, 2, 7, 7, 32)


def test_records_beyond_the_limit_are_passed_over(tmp_path: Path) -> None:
    target = host_target(2)
    plan = direct(SMALL, gather="root")
    record = records.Record(
        SMALL.key(), 2, plan.algorithm, vars(plan.variant), plan.decisions, 1e-3, 2e-3, instruction_set(target),
        "a CPU", "2026-01-01", {"apache-tvm": "0"},
    )  # fmt: skip
    path = tmp_path / target_key(target) / records.FILE_NAME
    records.merge(path, [record])
    assert make_plan(SMALL, target, tmp_path).origin == str(path)
    limit = planner.bytes_per_thread(plan, target) - 1
    with pytest.warns(RecordWarning, match=rf"needs {limit + 1} bytes of workspace a thread, and {limit} are allowed"):
        passed = make_plan(SMALL, target, tmp_path, workspace_limit=limit)
    assert passed.origin == "default"
    assert planner.bytes_per_thread(passed, target) <= limit


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1", True])
def test_bad_limits(limit: object) -> None:
    with pytest.raises(ValueError, match=r"`workspace_limit` must be.*Received: workspace_limit="):
        Conv3D(2, 1, workspace_limit=limit)


def test_the_limit_travels_with_the_layer() -> None:
    layer = Conv3D(2, 1, workspace_limit=12345)
    assert layer.get_config()["workspace_limit"] == 12345
    assert "workspace_limit" not in Conv3D(2, 1).get_config()
    again = Conv3D.from_config(layer.get_config())
    for twin in (again, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._executor._limit == 12345


SCARCE = """
import resource, sys
import numpy as np
from dataclasses import replace
from tvm_conv3d import Conv3D, set_num_threads
from tvm_conv3d.runtime import executor as runtime

def memory(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    soft = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + (more << 20)
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))

def refused(layer, x):
    try:
        layer(x)
    except MemoryError as error:
        return str(error)
    raise SystemExit("no MemoryError")

real = runtime.make_plan
def all_at_once(*arguments, **options):
    plan = real(*arguments, **options)
    return replace(plan, variant=replace(plan.variant, gather="root"))

set_num_threads(2)
small = np.ones((1, 2, 8, 8, 1), np.float32)
Conv3D(1, 1)(small)  # all that a first call makes

large = Conv3D(8, 3, padding="same", accuracy="strict", kernel_initializer="ones")
x = np.ones((1, 16, 128, 128, 64), np.float32)
runtime.make_plan = all_at_once
spec = large._prepare(x.shape).problem.spec
large._executor.prepared(spec, True)
runtime.make_plan = real
memory(40)
assert "intermediates" in refused(large, x)
memory(None)
assert large(x).max() == 27 * 64

many = Conv3D(1024, 1)
wide = np.ones((1, 4, 64, 64, 8), np.float32)
many(wide[:, :1])
many.plan_for(wide.shape)
memory(20)
assert "allocate" in refused(many, wide)
memory(None)
assert many(wide).shape == (1, 4, 64, 64, 1024)

heavy = Conv3D(5000, 1)
thin = np.ones((1, 1, 1, 2, 5000), np.float32)
spec = heavy._prepare(thin.shape).problem.spec
heavy._executor.prepared(spec, False)
memory(20)
assert "allocate" in refused(heavy, thin)
memory(None)
assert heavy(thin).shape == (1, 1, 1, 2, 5000)
print("survived")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited in Linux's way")
def test_scarce_memory_is_an_error_in_words() -> None:
    """Not the end of the process, which a failing allocation in compiled code would be."""
    out = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True, check=False, timeout=200)
    assert out.stdout.strip() == "survived", out.stderr[-2000:]
