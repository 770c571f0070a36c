"""Functions scheduled by hand for CUDA, small enough to run on the CPU."""

from __future__ import annotations

from typing import Any

TARGET = {
    "kind": "cuda",
    "arch": "sm_80",
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 49152,
    "thread_warp_size": 32,
}


def elementwise(dtype: str, extent: int, lanes: int) -> Any:
    """out = max(a * b + 1, 0); blocks of 32 threads, vectors of `lanes`, a last block that is not full."""
    from tvm import te, tirx
    from tvm.s_tir import Schedule

    a, b = (te.placeholder((extent,), name=name, dtype=dtype) for name in "ab")
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)
    out = te.compute((extent,), lambda i: te.max(a[i] * b[i] + one, zero), name="out")
    schedule = Schedule(te.create_prim_func([a, b, out]))
    (i,) = schedule.get_loops(schedule.get_sblock("out"))
    block, thread, lane = schedule.split(i, [None, 32, lanes])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    if lanes > 1:
        schedule.vectorize(lane)
    return schedule.mod


def transpose(shape: tuple[int, int, int]) -> Any:
    """out[z, y, x] = a[x, y, z] + its place; grid and blocks in three dimensions."""
    from tvm import te
    from tvm.s_tir import Schedule

    depth, height, width = shape
    a = te.placeholder((width, height, depth), name="a")
    out = te.compute(shape, lambda z, y, x: a[x, y, z] + (z * 100 + y * 10 + x).astype("float32"), name="out")
    schedule = Schedule(te.create_prim_func([a, out]))
    loops = schedule.get_loops(schedule.get_sblock("out"))
    parts = [schedule.split(loop, [None, factor]) for loop, factor in zip(loops, (2, 3, 4), strict=True)]
    schedule.reorder(*[outer for outer, _ in parts], *[inner for _, inner in parts])
    for (outer, inner), axis in zip(parts, "zyx", strict=True):
        schedule.bind(outer, f"blockIdx.{axis}")
        schedule.bind(inner, f"threadIdx.{axis}")
    return schedule.mod


def matmul(dtype: str, *, scope: str = "shared", pipelined: bool = False) -> Any:
    """out = exp(a @ b), (32, 64) @ (64, 32): 2 x 2 blocks of 8 x 8 threads, tiles fetched together in vectors of 4."""
    from tvm import te, tirx
    from tvm.s_tir import Schedule

    a, b = te.placeholder((32, 64), name="a", dtype=dtype), te.placeholder((64, 32), name="b", dtype=dtype)
    k = te.reduce_axis((0, 64), name="k")
    product = te.compute(
        (32, 32), lambda i, j: te.sum(a[i, k].astype("float32") * b[k, j].astype("float32"), axis=k), name="product"
    )
    out = te.compute((32, 32), lambda i, j: tirx.exp(product[i, j]).astype(dtype), name="out")
    schedule = Schedule(te.create_prim_func([a, b, out]))
    block = schedule.get_sblock("product")
    i, j = schedule.get_loops(schedule.get_sblock("out"))
    i0, i1, i2 = schedule.split(i, [None, 8, 2])
    j0, j1, j2 = schedule.split(j, [None, 8, 2])
    schedule.reorder(i0, j0, i1, j1, i2, j2)
    for loop, tag in ((i0, "blockIdx.y"), (j0, "blockIdx.x"), (i1, "threadIdx.y"), (j1, "threadIdx.x")):
        schedule.bind(loop, tag)
    schedule.compute_at(block, j1)
    schedule.set_scope(block, 0, "local")
    *_, i3, j3, k0 = schedule.get_loops(block)
    k1, k2 = schedule.split(k0, [None, 16])
    schedule.reorder(k1, k2, i3, j3)
    for operand in (0, 1):
        tile = schedule.cache_read(block, operand, scope)
        schedule.compute_at(tile, k1)
        fused = schedule.fuse(*schedule.get_loops(tile)[-2:])
        y, x, lane = schedule.split(fused, [8, None, 4])
        schedule.bind(y, "threadIdx.y")
        schedule.bind(x, "threadIdx.x")
        schedule.vectorize(lane)
    schedule.decompose_reduction(block, k1)
    if pipelined:
        schedule.annotate(k1, "software_pipeline_stage", [0, 0, 1])
        schedule.annotate(k1, "software_pipeline_order", [0, 1, 2])
        schedule.annotate(k1, "software_pipeline_async_stages", [0])
    return schedule.mod


def activations(dtype: str, extent: int, names: tuple[str, ...]) -> Any:
    """out[f, i] = function f of a[i]; `names` are TVM's unary functions. One block a function."""
    from tvm import te, tirx
    from tvm.s_tir import Schedule

    a = te.placeholder((extent,), name="a", dtype=dtype)
    functions = [getattr(tirx, name) for name in names]
    outs = [te.compute((extent,), _of(function, a), name=f"out_{function.__name__}") for function in functions]
    schedule = Schedule(te.create_prim_func([a, *outs]))
    for name in names:
        (i,) = schedule.get_loops(schedule.get_sblock(f"out_{name}"))
        block, thread = schedule.split(i, [None, 64])
        schedule.bind(block, "blockIdx.x")
        schedule.bind(thread, "threadIdx.x")
    return schedule.mod


def _of(function: Any, a: Any) -> Any:
    return lambda i: function(a[i])


def row_sums(rows: int, columns: int) -> Any:
    """out[i] = sum of a[i, :]; the threads of a block sum together, by shuffles."""
    from tvm import te
    from tvm.s_tir import Schedule

    a = te.placeholder((rows, columns), name="a")
    k = te.reduce_axis((0, columns), name="k")
    out = te.compute((rows,), lambda i: te.sum(a[i, k], axis=k), name="out")
    schedule = Schedule(te.create_prim_func([a, out]))
    i, k0 = schedule.get_loops(schedule.get_sblock("out"))
    schedule.bind(i, "blockIdx.x")
    schedule.bind(k0, "threadIdx.x")
    return schedule.mod


def padded_difference(extent: int) -> Any:
    """out[i, j] = p[i, j] - p[i + 2, j + 2], p = a with a border of zeros: two kernels and a workspace between them."""
    from tvm import te, tirx
    from tvm.s_tir import Schedule

    a = te.placeholder((extent, extent), name="a")
    zero = tirx.const(0.0, "float32")

    def padded(i: Any, j: Any) -> Any:
        inside = tirx.all(i >= 1, i <= extent, j >= 1, j <= extent)
        return tirx.if_then_else(inside, a[i - 1, j - 1], zero)

    p = te.compute((extent + 2, extent + 2), padded, name="p")
    out = te.compute((extent, extent), lambda i, j: p[i, j] - p[i + 2, j + 2], name="out")
    schedule = Schedule(te.create_prim_func([a, out]))
    for name in ("p", "out"):
        fused = schedule.fuse(*schedule.get_loops(schedule.get_sblock(name)))
        block, thread = schedule.split(fused, [None, 32])
        schedule.bind(block, "blockIdx.x")
        schedule.bind(thread, "threadIdx.x")
    return schedule.mod


def tensor_core_matmul(dtype: str) -> Any:
    """out = a @ b, all (32, 32), float32 sums: two blocks of two warps, a 16 x 16 tile of `out` each."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def main(a: T.Buffer((32, 32), dtype), b: T.Buffer((32, 32), dtype), out: T.Buffer((32, 32), "float32")):
        T.func_attr({"tirx.noalias": True})
        block = T.launch_thread("blockIdx.y", 2)
        warp = T.launch_thread("threadIdx.y", 2)
        lane = T.launch_thread("threadIdx.x", 32)
        a_shared = T.alloc_buffer((16, 32), dtype, scope="shared")
        a_tile = T.alloc_buffer((16, 16), dtype, scope="wmma.matrix_a")
        b_tile = T.alloc_buffer((16, 16), dtype, scope="wmma.matrix_b")
        sums = T.alloc_buffer((16, 16), "float32", scope="wmma.accumulator")
        for i in range(8):
            a_shared[warp * 8 + i, lane] = a[block * 16 + warp * 8 + i, lane]
        T.evaluate(T.tvm_fill_fragment(sums.data, 16, 16, 16, 0, T.float32(0)))
        for k in range(2):
            T.evaluate(
                T.tvm_load_matrix_sync(
                    a_tile.data, 16, 16, 16, 0, a_shared.access_ptr("r", offset=k * 16), 32, "row_major"
                )
            )
            T.evaluate(
                T.tvm_load_matrix_sync(
                    b_tile.data, 16, 16, 16, 0, b.access_ptr("r", offset=k * 512 + warp * 16), 32, "row_major"
                )
            )
            T.evaluate(T.tvm_mma_sync(sums.data, 0, a_tile.data, 0, b_tile.data, 0, sums.data, 0))
        T.evaluate(
            T.tvm_store_matrix_sync(
                sums.data, 16, 16, 16, 0, out.access_ptr("w", offset=block * 512 + warp * 16), 32, "row_major"
            )
        )

    return main
