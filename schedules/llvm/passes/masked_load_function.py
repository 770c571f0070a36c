"""A vector of a row that may end within it: elements before or behind the row are zero and not read.

The type of storage is widened to the accumulator's on the way
(:func:`tvm_conv3d.compute.shared.elements.widen`).
"""

from __future__ import annotations

#: For each type of storage and of accumulator: LLVM's element types, bytes of storage, and how a vector is widened.
_WIDENED = {
    ("float32", "float32"): ("float", "float", 4, ()),
    ("float64", "float64"): ("double", "double", 8, ()),
    ("float16", "float32"): ("half", "float", 2, ("fpext",)),
    ("uint16", "float32"): ("i16", "float", 2, ("bfloat16",)),
}


def can_load(storage: str, accumulator: str) -> bool:
    """Whether there is such a function for these types."""
    return (storage, accumulator) in _WIDENED


def load_function(storage: str, accumulator: str, lanes: int, stride: int, padded: bool) -> tuple[str, str]:
    """Name and text of vector(place) or, padded, of vector(place, first, end): every `stride`-th element from `place`.

    The elements from `first` on, up to `end`, counted from `place`, are those of the row.
    """
    kept, wide, size, how = _WIDENED[storage, accumulator]
    count = lanes * stride
    name = f"tvm_conv3d_load_{storage}x{lanes}s{stride}{'p' if padded else ''}"
    vector = f"<{count} x {kept}>"
    numbers = f"<{', '.join(f'i32 {i}' for i in range(count))}>"
    lines = [f"%all = load {vector}, ptr %place, align {size}"]
    declared = ""
    if padded:
        masked = f"@llvm.masked.load.v{count}{_suffix(kept)}.p0"
        arguments = f"ptr, i32, <{count} x i1>, {vector}"
        declared = f"declare {vector} {masked}({arguments})\n"
        lines = [
            f"%f0 = insertelement <{count} x i32> poison, i32 %first, i32 0",
            f"%f = shufflevector <{count} x i32> %f0, <{count} x i32> poison, <{count} x i32> zeroinitializer",
            f"%e0 = insertelement <{count} x i32> poison, i32 %end, i32 0",
            f"%e = shufflevector <{count} x i32> %e0, <{count} x i32> poison, <{count} x i32> zeroinitializer",
            f"%not_before = icmp sge <{count} x i32> {numbers}, %f",
            f"%not_behind = icmp slt <{count} x i32> {numbers}, %e",
            f"%inside = and <{count} x i1> %not_before, %not_behind",
            f"%all = call {vector} {masked}(ptr %place, i32 {size}, <{count} x i1> %inside, {vector} zeroinitializer)",
        ]
    picks = ", ".join(f"i32 {i}" for i in range(0, count, stride))
    lines.append(f"%picked = shufflevector {vector} %all, {vector} poison, <{lanes} x i32> <{picks}>")
    result = f"<{lanes} x {wide}>"
    if "fpext" in how:
        lines += [f"%wide = fpext <{lanes} x {kept}> %picked to {result}", f"ret {result} %wide"]
    elif "bfloat16" in how:
        lines += [
            f"%bits = zext <{lanes} x i16> %picked to <{lanes} x i32>",
            f"%upper = shl <{lanes} x i32> %bits, splat (i32 16)",
            f"%wide = bitcast <{lanes} x i32> %upper to {result}",
            f"ret {result} %wide",
        ]
    else:
        lines.append(f"ret {result} %picked")
    takes = "ptr %place, i32 %first, i32 %end" if padded else "ptr %place"
    body = "\n  ".join(lines)
    return name, f"{declared}define {result} @{name}({takes}) alwaysinline nounwind {{\n  {body}\n}}\n"


def _suffix(kept: str) -> str:
    """How LLVM abbreviates an element type in the names of its intrinsics."""
    return {"float": "f32", "double": "f64", "half": "f16", "i16": "i16"}[kept]
