"""Tensor intrinsics for products of 16 x 16 x 16 on tensor cores, by CUDA's `nvcuda::wmma`.

TVM has such intrinsics, but importing them takes half a minute, and those for bfloat16 are missing. Of each pair the
description says what a part of a schedule computes, the implementation by which instruction.
"""

from __future__ import annotations

import functools
import textwrap
from typing import Any

from tvm import ir, tirx
from tvm.s_tir import MatchBufferRegion, SBlock

from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.long_sums import TOTAL, alike

#: Name of the block that sets sums to zero once it has become an instruction.
START = "product_init_o"

#: And of the one that copies them to shared memory.
LEAVE = "product_shared.dyn_wmma.accumulator_o"

#: Purpose -> operands (name, scope; the element type follows from it), what is read, written and computed element by
#: element, and the instruction.
_INTRINSICS = {
    "fill": (
        {"C": "wmma.accumulator"},
        ("", "C", "SS", "C[i, j] = T.float32(0)"),
        "T.tvm_fill_fragment(C.data, 16, 16, 16, {at_C}, T.float32(0), dtype='void')",
    ),
    "load_a": (
        {"S": "shared.dyn", "A": "wmma.matrix_a"},
        ("S", "A", "SS", "A[i, j] = S[i, j]"),
        "T.tvm_load_matrix_sync(A.data, 16, 16, 16, {at_A}, S.access_ptr('r', ptr_type='{dtype}'), S_stride, "
        "'row_major', dtype='void')",
    ),
    "load_b": (
        {"S": "shared.dyn", "B": "wmma.matrix_b"},
        ("S", "B", "SS", "B[i, j] = S[i, j]"),
        "T.tvm_load_matrix_sync(B.data, 16, 16, 16, {at_B}, S.access_ptr('r', ptr_type='{dtype}'), S_stride, "
        "'row_major', dtype='void')",
    ),
    "multiply": (
        {"A": "wmma.matrix_a", "B": "wmma.matrix_b", "C": "wmma.accumulator"},
        ("CAB", "C", "SSR", "C[i, j] = C[i, j] + T.Cast('float32', A[i, k]) * T.Cast('float32', B[k, j])"),
        "T.tvm_mma_sync(C.data, {at_C}, A.data, {at_A}, B.data, {at_B}, C.data, {at_C}, dtype='void')",
    ),
    "store": (
        {"C": "wmma.accumulator", "S": "shared.dyn"},
        ("C", "S", "SS", "S[i, j] = C[i, j]"),
        "T.tvm_store_matrix_sync(C.data, 16, 16, 16, {at_C}, S.access_ptr('w', ptr_type='float32'), S_stride, "
        "'row_major', dtype='void')",
    ),
    "store_turned": (
        {"C": "wmma.accumulator", "S": "shared.dyn"},
        ("C", "S", "SS", "S[j, i] = C[i, j]"),
        "T.tvm_store_matrix_sync(C.data, 16, 16, 16, {at_C}, S.access_ptr('w', ptr_type='float32'), S_stride, "
        "'col_major', dtype='void')",
    ),
}


@functools.cache
def register(dtype: str) -> dict[str, str]:
    """Registers the intrinsics for factors of `dtype` with float32 sums, once; returns their names by purpose."""
    from tvm.s_tir import TensorIntrin
    from tvm.script import from_source
    from tvm.script import tirx as script

    names = {}
    for purpose in _INTRINSICS:
        names[purpose] = f"tvm_conv3d_wmma_{purpose}_{dtype}"
        pair = [from_source(text, {"T": script}) for text in _sources(purpose, dtype)]
        TensorIntrin.register(names[purpose], *pair, override=True)
    return names


def _sources(purpose: str, dtype: str) -> tuple[str, str]:
    """Description and implementation as TVMScript."""
    operands, (reads, writes, axes, statement), instruction = _INTRINSICS[purpose]
    sums = {"C", "S"} if purpose.startswith("store") else {"C"}
    types = {name: "float32" if name in sums else dtype for name in operands}
    index_analysis = ", ".join("xyz"[: len(axes)])
    description = f"""
        for {index_analysis} in T.grid({", ".join(["16"] * len(axes))}):
            with T.sblock(""):
                {", ".join("ijk"[: len(axes)])} = T.axis.remap("{axes}", [{index_analysis}])
                {statement}
        """
    # number of the fragment of 16 x 16 among those of the buffer
    at = {
        f"at_{n}": f"{n}.elem_offset // {n}_stride // 16 * ({n}_stride // 16) + {n}.elem_offset % {n}_stride // 16"
        for n in operands
    }
    implementation = f"T.evaluate({instruction.format(dtype=dtype, **at)})"
    return (
        _function(operands, types, (reads, writes), description, strided=False),
        _function(operands, types, (reads, writes), implementation, strided=True),
    )


def _function(
    operands: dict[str, str], types: dict[str, str], access: tuple[str, str], body: str, strided: bool
) -> str:
    lines = ["@T.prim_func(s_tir=True)"]
    lines.append(f"def intrinsic({', '.join(f'{name.lower()}: T.handle' for name in operands)}) -> None:")
    if strided:
        lines += [f"    {name}_{part} = T.int32()" for name in operands for part in ("stride", "step")]
    for name, scope in operands.items():
        strides = f", strides=[{name}_stride, {name}_step]" if strided else ""
        lines.append(
            f'    {name} = T.match_buffer({name.lower()}, (16, 16), "{types[name]}", align=64, offset_factor=16, '
            f'scope="{scope}"{strides})'
        )
    reads, writes = (", ".join(f"{name}[0:16, 0:16]" for name in names) for names in access)
    lines += ['    with T.sblock("root"):', f"        T.reads({reads})", f"        T.writes({writes})"]
    lines.append(textwrap.indent(textwrap.dedent(body).strip(), " " * 8))
    return "\n".join(lines)


#: Adds a fragment to another, element by element, which no instruction of TVM does. Unrolled loops repeat it.
_ADD = """
#ifndef TVM_CONV3D_ADD_FRAGMENT
#define TVM_CONV3D_ADD_FRAGMENT
template <class Totals, class Parts>
__device__ __forceinline__ void tvm_conv3d_add_fragment(Totals& totals, int total, Parts& parts, int part) {
  for (int i = 0; i < totals[0].num_elements; ++i) totals[total].x[i] += parts[part].x[i];
}
#endif
"""


def add_fragments(start: SBlock, part: Any) -> SBlock:
    """The block that adds fragments of `part` to totals, made from that which fills a fragment of these with zeros."""
    (match,), (region,) = start.match_buffers, start.writes
    values = alike(match.buffer)
    source = index_analysis.put_all(region, {region.source: part})
    to, at = start.body.value.args[0], start.body.value.args[4]
    fragments = (to, at, index_analysis.put_all(to, values), index_analysis.put_all(at, values))
    call = tirx.Evaluate(tirx.call_extern("void", "tvm_conv3d_add_fragment", *fragments))
    body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_c", ir.StringImm(_ADD), call)
    matches = [match, MatchBufferRegion(values[match.buffer], source)]
    return SBlock(start.iter_vars, [region, source], [region], TOTAL, body, match_buffers=matches)
