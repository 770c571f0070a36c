"""LLVM IR written as Python expressions: vectors, or single numbers, of float32 and of 32-bit integers.

Every operation is one instruction of the function that is being written, and its result has a name there. So nothing is
computed twice, and nothing is simplified on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

#: LLVM's names of elements.
FLOAT, INTEGER, TRUTH = "float", "i32", "i1"

#: Intrinsics, and how many values each takes.
_INTRINSICS = {"fmuladd": 3, "nearbyint": 1}


class Code:
    """A function of one value of float32, which returns another.

    Args:
        lanes: of all its values.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._lines: list[str] = []

    def type(self, element: str) -> str:
        """LLVM's type of its values of such elements."""
        return element if self.lanes == 1 else f"<{self.lanes} x {element}>"

    def emit(self, element: str, instruction: str) -> Value:
        """The result of an instruction."""
        name = f"%t{len(self._lines)}"
        self._lines.append(f"  {name} = {instruction}")
        return Value(self, element, name)

    def call(self, intrinsic: str, *values: Value | float) -> Value:
        """The result of an intrinsic function of float32."""
        arguments = ", ".join(f"{self.type(FLOAT)} {self.text(value, FLOAT)}" for value in values)
        return self.emit(FLOAT, f"call {self.type(FLOAT)} @{self._intrinsic(intrinsic)}({arguments})")

    def select(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        """The one value or the other, lane by lane; NaN makes comparisons false."""
        kind = self.type(FLOAT)
        choices = f"{kind} {self.text(yes, FLOAT)}, {kind} {self.text(no, FLOAT)}"
        return self.emit(FLOAT, f"select {self.type(TRUTH)} {condition.name}, {choices}")

    def text(self, value: Value | float, element: str) -> str:
        """A value, or a constant in all lanes, as an operand."""
        if isinstance(value, Value):
            return value.name
        # LLVM takes constants of float32 as float64's bits
        number = str(value) if element == INTEGER else f"0x{struct.pack('>d', _float32(value)).hex().upper()}"
        return number if self.lanes == 1 else f"splat ({element} {number})"

    def function(self, name: str, of: Callable[[Code, Value], Value]) -> str:
        """The text of the function `name`, which computes `of(self, x)`."""
        kind = self.type(FLOAT)
        result = of(self, Value(self, FLOAT, "%x"))
        head = f"define linkonce_odr {kind} @{name}({kind} %x) alwaysinline nounwind {{"
        declared = [
            f"declare {kind} @{self._intrinsic(intrinsic)}({', '.join([kind] * count)})"
            for intrinsic, count in _INTRINSICS.items()
        ]
        return "\n".join([*declared, head, *self._lines, f"  ret {kind} {result.name}", "}"])

    def _intrinsic(self, name: str) -> str:
        return f"llvm.{name}.f32" if self.lanes == 1 else f"llvm.{name}.v{self.lanes}f32"


class Value:
    """A named value of a function."""

    def __init__(self, code: Code, element: str, name: str) -> None:
        self.code, self.element, self.name = code, element, name

    def __add__(self, other: Value | float) -> Value:
        return self._binary("fadd", "add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._binary("fsub", "sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._binary("fmul", "mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._binary("fdiv", "sdiv", other)

    def __lshift__(self, bits: int) -> Value:
        return self._binary("", "shl", bits)

    def __rshift__(self, bits: int) -> Value:
        """With the sign."""
        return self._binary("", "ashr", bits)

    def __and__(self, other: int) -> Value:
        return self._binary("", "and", other)

    def __neg__(self) -> Value:
        if self.element == FLOAT:
            return self.code.emit(FLOAT, f"fneg {self.code.type(FLOAT)} {self.name}")
        return self.code.emit(INTEGER, f"sub {self.code.type(INTEGER)} {self.code.text(0, INTEGER)}, {self.name}")

    def __lt__(self, other: Value | float) -> Value:
        return self._compare("olt", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compare("ogt", other)

    def __ge__(self, other: Value | float) -> Value:
        return self._compare("oge", other)

    def bits(self) -> Value:
        """The same bits as an integer, or as a number of float32."""
        return self._cast("bitcast", INTEGER if self.element == FLOAT else FLOAT)

    def to_integer(self) -> Value:
        """Towards zero; of a number that no integer is, anything."""
        return self._cast("fptosi", INTEGER)

    def to_float(self) -> Value:
        """The nearest number."""
        return self._cast("sitofp", FLOAT)

    def _binary(self, of_floats: str, of_integers: str, other: Value | float) -> Value:
        code = self.code
        operation = of_floats if self.element == FLOAT else of_integers
        kind, operand = code.type(self.element), code.text(other, self.element)
        return code.emit(self.element, f"{operation} {kind} {self.name}, {operand}")

    def _compare(self, predicate: str, other: Value | float) -> Value:
        code = self.code
        return code.emit(TRUTH, f"fcmp {predicate} {code.type(FLOAT)} {self.name}, {code.text(other, FLOAT)}")

    def _cast(self, operation: str, element: str) -> Value:
        code = self.code
        return code.emit(element, f"{operation} {code.type(self.element)} {self.name} to {code.type(element)}")


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
