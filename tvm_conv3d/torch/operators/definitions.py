"""The convolution and its gradients as torch knows them: three operators, each of which derives by the others.

Their arguments behind the tensors are those of `aten::convolution`, but that six numbers of `padding` are those before
and after each axis (:class:`tvm_conv3d.torch.operators.geometry.Geometry`).
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("tvm_conv3d", "DEF")

_GEOMETRY = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups) -> Tensor"

for _schema in (
    f"convolution(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}",
    f"convolution_data_gradient(Tensor gradient, Tensor weight, SymInt[] input_size, {_GEOMETRY}",
    f"convolution_weight_gradient(Tensor gradient, Tensor input, SymInt[] kernel_size, {_GEOMETRY}",
):
    LIBRARY.define(
        _schema,
        # compilers must not lay out the input anew: the result's strides follow it
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
    )

#: The convolution of an input.
CONVOLUTION = torch.ops.tvm_conv3d.convolution.default

#: The gradient of its input, from that of its result; `input_size` is the input's depth, height and width.
DATA_GRADIENT = torch.ops.tvm_conv3d.convolution_data_gradient.default

#: The gradient of its weight, from that of its result; `kernel_size` is the weight's depth, height and width.
WEIGHT_GRADIENT = torch.ops.tvm_conv3d.convolution_weight_gradient.default
