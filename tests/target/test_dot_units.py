"""Dot-product units: which CPUs have them, and that records of the types they multiply tell them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tvm_conv3d.engine import records
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.engine.records import Record
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target import answers, cpu
from tvm_conv3d.target.cpu import cpu_traits
from tvm_conv3d.target.resolve import instruction_set, resolve, target_key

SPEC = Conv3DSpec(1, (4, 12, 12), 8, 16, (3, 3, 3))
ARM = "aarch64-linux-gnu"


@pytest.mark.parametrize(
    ("cpu", "triple", "dtype", "expected"),
    [
        ("znver4", "x86_64-linux-gnu", "bfloat16", ["avx512bf16"]),
        ("znver4", "x86_64-linux-gnu", "int8", ["avx512vnni"]),
        ("znver4", "x86_64-linux-gnu", "float16", []),
        ("sapphirerapids", "x86_64-linux-gnu", "bfloat16", ["amx-bf16", "avx512bf16"]),
        ("sapphirerapids", "x86_64-linux-gnu", "int8", ["amx-int8", "avx512vnni", "avxvnni"]),
        ("graniterapids", "x86_64-linux-gnu", "float16", ["amx-fp16"]),
        ("haswell", "x86_64-linux-gnu", "bfloat16", []),
        ("neoverse-v1", ARM, "bfloat16", ["bf16"]),
        ("neoverse-v1", ARM, "int8", ["i8mm", "dotprod"]),
        ("neoverse-n1", ARM, "bfloat16", []),
    ],
)
def test_units(cpu: str, triple: str, dtype: str, expected: list[str]) -> None:
    target = resolve({"kind": "llvm", "mcpu": cpu, "mtriple": triple}, 2)
    traits = cpu_traits(target)
    assert [unit.feature for unit in traits.dot_units(dtype)] == expected
    plain = instruction_set(target)
    assert "+" not in plain
    for single in ("float32", "float64"):
        assert traits.dot_units(single) == ()
        assert instruction_set(target, single) == plain
    assert instruction_set(target, dtype) == "+".join([plain, *expected])


def test_targets_that_differ_in_units_share_records_of_float32_only() -> None:
    zen, rapids = (resolve({"kind": "llvm", "mcpu": cpu}, 2) for cpu in ("znver4", "sapphirerapids"))
    assert instruction_set(zen) == instruction_set(rapids)
    assert instruction_set(zen, "float16") == instruction_set(rapids, "float16")
    assert instruction_set(zen, "bfloat16") != instruction_set(rapids, "bfloat16")


def test_units_that_the_system_hides_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the target stays, and so do the records of other types."""
    zen = {"kind": "llvm", "mcpu": "znver4"}
    monkeypatch.setattr(answers, "system_cpu", lambda: "znver4")
    flags = frozenset({"avx512f", "avx2", "avx", "fma", "f16c", "avx512_vnni"})
    monkeypatch.setattr(cpu, "_linux_cpu_flags", lambda: flags)
    found = cpu.host_target.__wrapped__(2)
    assert cpu_traits(found).dot_units("bfloat16") == ()
    assert [unit.feature for unit in cpu_traits(found).dot_units("int8")] == ["avx512vnni"]
    assert target_key(found) == target_key(resolve(zen, 2))
    assert instruction_set(found) == instruction_set(resolve(zen, 2))


def test_a_record_is_taken_where_the_units_are_its_own(tmp_path: Path) -> None:
    zen = resolve({"kind": "llvm", "mcpu": "znver4"}, 2)
    for dtype in ("float32", "bfloat16"):
        spec = replace(SPEC, dtype=dtype)
        plan = default_plan(spec, zen)
        about = {"cpu": "a CPU", "date": "2026-01-31", "versions": {}}
        fields = {"algorithm": plan.algorithm, "variant": asdict(plan.variant), "decisions": dict(plan.decisions)}
        kept = Record(spec.key(), 2, **fields, seconds=1e-3, default_seconds=2e-3, isa=instruction_set(zen), **about)
        file = tmp_path / dtype / records.FILE_NAME
        records.merge(file, [kept])
        if dtype == "float32":
            assert next(records.find(spec, zen, file)).file == file
            continue
        with pytest.warns(records.RecordWarning, match="measured with instruction set x86_64-512x32, and this target"):
            assert not [found for found in records.find(spec, zen, file) if found.file == file]
        records.merge(file, [replace(kept, isa=instruction_set(zen, dtype))], replace=True)
        assert next(records.find(spec, zen, file)).file == file
