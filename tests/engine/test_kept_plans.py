"""Plans on disk: found again only where planning anew would give the same."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tvm_conv3d.engine import artifact, kept_plans, planner, records
from tvm_conv3d.engine.algorithms import algorithms, variant_types
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.engine.records import Record
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import folders
from tvm_conv3d.target import cpu
from tvm_conv3d.target.cpu import host_target
from tvm_conv3d.target.resolve import instruction_set, resolve, target_key

SPEC = Conv3DSpec(1, (6, 14, 14), 16, 32, (3, 3, 3))


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Conv3DSpec]:
    """The specs that were planned anew, in an empty cache."""
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    seen = []
    real = planner.default_plan

    def counting(spec: Conv3DSpec, *rest: Any) -> Plan:
        seen.append(spec)
        return real(spec, *rest)

    monkeypatch.setattr(planner, "default_plan", counting)
    return seen


@pytest.mark.parametrize("kind", ["llvm", "cuda"])
def test_types_of_variants_are_the_algorithms_own(kind: str) -> None:
    assert variant_types(kind) == {name: each.variant_type for name, each in algorithms(kind).items()}


@pytest.mark.parametrize("target", [None, "cuda:sm_80"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_plan_is_made_once(target: str | None, exact: bool, planned: list[Conv3DSpec]) -> None:
    resolved = resolve(target, 2)
    first, second = (make_plan(SPEC, resolved, exact=exact) for _ in range(2))
    assert first == second == default_plan(SPEC, resolved, exact=exact)
    assert second.error_bound == default_plan(SPEC, resolved, exact=exact).error_bound
    assert (first.exact, second.origin) == (exact or first.exact, "default")
    assert planned == [SPEC]


def test_all_that_a_plan_depends_on_counts(planned: list[Conv3DSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    target = host_target(2)

    def plan_again() -> None:
        for _ in range(2):
            make_plan(SPEC, target)

    plan_again()
    make_plan(replace(SPEC, batch=2), target)
    make_plan(SPEC, host_target(3))
    make_plan(SPEC, target, exact=True)
    make_plan(SPEC, target, workspace_limit=planner.DEFAULT_LIMIT - 1)
    changes: dict[str, tuple[Any, str, Any]] = {
        "caches": (cpu, "_linux_caches", lambda: {2: 123 << 10}),
        "versions": (artifact, "_versions", lambda: {"tvm-conv3d": "0"}),
        "sources": (artifact, "source_hash", lambda: "other"),
        "costs": (kept_plans, "_hash_of_costs", lambda: "other"),
    }
    for count, (where, name, value) in enumerate(changes.values(), 6):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            plan_again()
        assert len(planned) == count
    plan_again()
    assert len(planned) == 5 + len(changes)


def test_a_damaged_plan_is_made_anew(planned: list[Conv3DSpec], tmp_path: Path) -> None:
    made = make_plan(SPEC, host_target(2))
    (note,) = (tmp_path / "plans").glob("*.json")
    note.write_text(note.read_text().replace(f'"algorithm": "{made.algorithm}"', '"algorithm": "planes"'))
    assert make_plan(SPEC, host_target(2)) == made
    assert len(planned) == 2


def _recorded(plan: Plan, **changes: Any) -> Record:
    fields = {"algorithm": plan.algorithm, "variant": asdict(plan.variant), "decisions": dict(plan.decisions)}
    about = {"isa": instruction_set(host_target(2)), "cpu": "a CPU", "date": "2026-01-31", "versions": {}}
    return Record(SPEC.key(), 2, **{**fields, **changes}, seconds=1e-3, default_seconds=2e-3, **about)


def test_a_record_takes_the_place_of_a_kept_plan(planned: list[Conv3DSpec]) -> None:
    target = host_target(2)
    assert make_plan(SPEC, target).origin == "default"
    file = records.user_logs() / target_key(target) / records.FILE_NAME
    other = default_plan(SPEC, target, exact=True)
    records.merge(file, [_recorded(other)])
    for _ in range(2):
        assert make_plan(SPEC, target) == replace(other, origin=str(file))
    file.unlink()
    assert make_plan(SPEC, target).origin == "default"
    assert len(planned) == 1


def test_a_record_that_is_not_used_is_told_of_in_every_process(planned: list[Conv3DSpec]) -> None:
    target = host_target(2)
    file = records.user_logs() / target_key(target) / records.FILE_NAME
    records.merge(file, [_recorded(default_plan(SPEC, target), algorithm="unheard of")])
    for _ in range(2):
        records.lookup._warned.clear()
        with pytest.warns(records.RecordWarning, match="unheard of"):
            make_plan(SPEC, target)
    assert len(planned) == 2
