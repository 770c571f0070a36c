"""The algorithms of NVIDIA's GPUs."""

from __future__ import annotations

from tvm_conv3d.compute.cuda import (
    implicit_gemm,
    tensor_gemm,
    weight_gradient_gemm,
    weight_gradient_window,
    window,
    winograd_gemm,
)
from tvm_conv3d.engine.algorithm import Algorithm, Family
from tvm_conv3d.schedules.cuda import finish, packing
from tvm_conv3d.schedules.cuda import gemm as gemm_loops
from tvm_conv3d.schedules.cuda import tensor as tensor_loops
from tvm_conv3d.schedules.cuda import weight_gradient_gemm as weight_gradient_gemm_loops
from tvm_conv3d.schedules.cuda import weight_gradient_window as weight_gradient_window_loops
from tvm_conv3d.schedules.cuda import window as window_loops
from tvm_conv3d.schedules.cuda import winograd as winograd_loops
from tvm_conv3d.schedules.cuda.costs import gemm as gemm_costs
from tvm_conv3d.schedules.cuda.costs import modelled
from tvm_conv3d.schedules.cuda.costs import tensor as tensor_costs
from tvm_conv3d.schedules.cuda.costs import weight_gradient_gemm as weight_gradient_gemm_costs
from tvm_conv3d.schedules.cuda.costs import weight_gradient_window as weight_gradient_window_costs
from tvm_conv3d.schedules.cuda.costs import window as window_costs
from tvm_conv3d.schedules.cuda.costs import winograd as winograd_costs

FAMILY = Family(kind="cuda", packing=packing.scheduled, finished=finish.finished, price=modelled.price)

#: Of equal estimates the first is taken.
# of no declared type: that would be of any variant, where mypy now holds an algorithm's parts to its own
ALGORITHMS = (
    Algorithm("window", FAMILY, window.WindowVariant, window, window_costs, window_loops),
    Algorithm(
        "winograd_gemm",
        FAMILY,
        winograd_gemm.WinogradGemmVariant,
        winograd_gemm,
        winograd_costs,
        winograd_loops,
    ),
    Algorithm("tensor_gemm", FAMILY, tensor_gemm.TensorVariant, tensor_gemm, tensor_costs, tensor_loops, phases=True),
    Algorithm("gemm", FAMILY, implicit_gemm.GemmVariant, implicit_gemm, gemm_costs, gemm_loops, phases=True),
    Algorithm(
        "weight_gradient_window",
        FAMILY,
        weight_gradient_window.WeightGradientWindowVariant,
        weight_gradient_window,
        weight_gradient_window_costs,
        weight_gradient_window_loops,
        of_weights=True,
    ),
    Algorithm(
        "weight_gradient_gemm",
        FAMILY,
        weight_gradient_gemm.WeightGradientGemmVariant,
        weight_gradient_gemm,
        weight_gradient_gemm_costs,
        weight_gradient_gemm_loops,
        of_weights=True,
    ),
)
