"""The algorithms of CPUs."""

from __future__ import annotations

from tvm_conv3d.compute.llvm import depthwise, direct, grouped, planes, weight_gradient, winograd, winograd_rows
from tvm_conv3d.engine.algorithm import Algorithm, Family
from tvm_conv3d.schedules.llvm import depthwise as depthwise_loops
from tvm_conv3d.schedules.llvm import direct as direct_loops
from tvm_conv3d.schedules.llvm import grouped as grouped_loops
from tvm_conv3d.schedules.llvm import packing
from tvm_conv3d.schedules.llvm import planes as planes_loops
from tvm_conv3d.schedules.llvm import weight_gradient as weight_gradient_loops
from tvm_conv3d.schedules.llvm import winograd as winograd_loops
from tvm_conv3d.schedules.llvm import winograd_rows as winograd_rows_loops
from tvm_conv3d.schedules.llvm.costs import depthwise as depthwise_costs
from tvm_conv3d.schedules.llvm.costs import direct as direct_costs
from tvm_conv3d.schedules.llvm.costs import grouped as grouped_costs
from tvm_conv3d.schedules.llvm.costs import planes as planes_costs
from tvm_conv3d.schedules.llvm.costs import table
from tvm_conv3d.schedules.llvm.costs import weight_gradient as weight_gradient_costs
from tvm_conv3d.schedules.llvm.costs import winograd as winograd_costs
from tvm_conv3d.schedules.llvm.costs import winograd_rows as winograd_rows_costs
from tvm_conv3d.schedules.llvm.passes import pipeline

FAMILY = Family(kind="llvm", packing=packing.scheduled, finished=pipeline.finished, price=table.price)

#: Of equal estimates the first is taken.
# of no declared type: that would be of any variant, where mypy now holds an algorithm's parts to its own
ALGORITHMS = (
    Algorithm("winograd", FAMILY, winograd.WinogradVariant, winograd, winograd_costs, winograd_loops),
    Algorithm(
        "winograd_rows",
        FAMILY,
        winograd_rows.WinogradRowsVariant,
        winograd_rows,
        winograd_rows_costs,
        winograd_rows_loops,
    ),
    Algorithm("planes", FAMILY, planes.PlanesVariant, planes, planes_costs, planes_loops),
    Algorithm("depthwise", FAMILY, depthwise.DepthwiseVariant, depthwise, depthwise_costs, depthwise_loops),
    Algorithm("grouped", FAMILY, grouped.GroupedVariant, grouped, grouped_costs, grouped_loops),
    Algorithm("direct", FAMILY, direct.DirectVariant, direct, direct_costs, direct_loops, phases=True),
    Algorithm(
        "weight_gradient",
        FAMILY,
        weight_gradient.WeightGradientVariant,
        weight_gradient,
        weight_gradient_costs,
        weight_gradient_loops,
        of_weights=True,
    ),
)
