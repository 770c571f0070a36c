"""Faults planted in code for ARM: what runs it on the CPU finds each, and says where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arm_checks import assert_right, compiled, plan_of
from arm_on_cpu import GENERIC, MACHINES, NEON, SVE_256, SVE_512, ArmError, Call, Machine, Tensor, link, missing, run
from sampling import sampled
from tvm_conv3d.engine import build, scheduling
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.spec import Conv3DSpec, Pads

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

LAYER = Conv3DSpec(1, (4, 5, 6), 8, 12, (3, 3, 3), pads=(Pads(1, 1),) * 3)

#: Numbers that the functions below read and write.
COUNT = 10

#: Vector multiply-adds of float32, by a lane and by a vector: bits that tell them, their values, and the bit that makes
#: them subtract (Arm Architecture Reference Manual, FMLA and FMLS).
MULTIPLY_ADDS = ((0xFFC0F400, 0x4F801000, 14), (0xFFE0FC00, 0x4E20CC00, 23))


def direct(machine: Machine) -> Plan:
    plan = plan_of("direct", LAYER, machine)
    assert plan is not None
    return plan


def copied(from_: int, to: int) -> bytes:
    """A function `f` that copies each number of `a` to `b`, some places further."""
    import tvm
    from tvm import IRModule
    from tvm.script import tirx as T

    @T.prim_func
    def f(a: T.Buffer((COUNT,), "float32", align=4), b: T.Buffer((COUNT,), "float32", align=4)) -> None:
        T.func_attr({"global_symbol": "f"})
        for i in T.serial(COUNT):
            b[i + to] = a[i + from_]

    return build.object_code(tvm.compile(IRModule({"f": f}), target=NEON.target.as_tvm()).mod)


def called(code: bytes, shape: tuple[int, ...] = (COUNT,), timeout: float = 60.0) -> np.ndarray:
    arrays = {"a": np.arange(COUNT, dtype=np.float32), "b": np.zeros(COUNT, np.float32)}
    arguments = [Tensor("a", (COUNT,), "float32"), Tensor("b", shape, "float32")]
    return run(link(code, ["f"]), NEON, [Call("f", arguments)], arrays, timeout=timeout)["b"]


def test_a_function_without_a_fault() -> None:
    np.testing.assert_array_equal(called(copied(0, 0)), np.arange(COUNT))


@pytest.mark.parametrize(
    ("from_", "to", "message"),
    [
        (1, 0, "out-of-bounds: access at byte 40 of a, which has 40"),
        (0, 1, "out-of-bounds: access at byte 40 of b, which has 40"),
        (0, -1, "out-of-bounds: write at byte -4 of b, which has 40"),
        (-1536, 0, "out-of-bounds: access at byte -6144 of a, which has 40"),
    ],
    ids=["read behind", "write behind", "write before", "read far before"],
)
def test_accesses_outside_of_an_array(from_: int, to: int, message: str) -> None:
    with pytest.raises(ArmError, match=message):
        called(copied(from_, to))


def test_arguments_that_a_function_refuses() -> None:
    with pytest.raises(ArmError, match=r"Error: .*(shape|ndim)"):
        called(copied(0, 0), shape=(COUNT - 1,))


def test_what_takes_too_long() -> None:
    with pytest.raises(ArmError, match=r"not done after 0\.001 s"):
        called(copied(0, 0), timeout=0.001)


def test_a_function_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="undefined symbol: __tvm_ffi_g"):
        link(copied(0, 0), ["g"])


@pytest.mark.parametrize("machine", [SVE_256, SVE_512], ids=str)
def test_instructions_that_a_machine_has_not(machine: Machine) -> None:
    """SVE, which LLVM makes of loops, is run where it is said to be, and nowhere else."""
    plan = plan_of("depthwise", replace(LAYER, size=(4, 5, 30), channels=33, filters=33, groups=33), machine)
    assert plan is not None
    artifact = compiled(plan, machine)
    assert_right(plan, machine, artifact=artifact)
    for other in (GENERIC, NEON):
        with pytest.raises(ArmError, match="crash: Illegal instruction"):
            assert_right(plan, other, artifact=artifact)


@pytest.mark.parametrize("machine", sampled(MACHINES, 2), ids=str)
def test_a_padding_that_is_not_guarded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scheduling.scheduled_module

    def unguarded(*arguments: Any) -> Any:
        import tvm_ffi
        from tvm import IRModule
        from tvm.ir import Call

        main = whole(*arguments)["main"]
        change = (Call, lambda call: call.args[1] if call.op.name == "prim.if_then_else" else call)
        return IRModule({"main": main.with_body(tvm_ffi.structural_map(main.body, change))})

    plan = direct(machine)
    assert_right(plan, machine)
    monkeypatch.setattr(scheduling, "scheduled_module", unguarded)
    with pytest.raises(ArmError, match=r"out-of-bounds: access at byte .* of x, which has 3840"):
        assert_right(plan, machine)


def test_a_multiply_add_that_subtracts() -> None:
    plan = direct(NEON)
    artifact = compiled(plan, NEON)
    code = np.frombuffer(artifact.object_code[: len(artifact.object_code) // 4 * 4], "<u4").copy()
    found = [(i, bit) for mask, value, bit in MULTIPLY_ADDS for i in np.flatnonzero(code & mask == value)]
    assert len(found) > 20
    place, bit = found[len(found) // 2]
    code[place] ^= 1 << bit
    changed = type(artifact)(code.tobytes() + artifact.object_code[code.nbytes :], artifact.functions, "")
    assert_right(plan, NEON, artifact=artifact)
    with pytest.raises(AssertionError, match=f"{LAYER.key()} "):
        assert_right(plan, NEON, artifact=changed)
