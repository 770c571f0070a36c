"""Linear layers by oneDNN as an operator of torch's, `torch.ops.tvm_conv3d.linear`, for graphs of inference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LIBRARY = torch.library.Library("tvm_conv3d", "FRAGMENT")


def _by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # what inductor calls with weights that are constants, which need not be laid out beforehand
    return torch.ops.mkldnn._linear_pointwise.default(input, weight, bias, "none", [], "")


_LIBRARY.define("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl("linear", _by_onednn, "CPU")
torch.library.register_fake("tvm_conv3d::linear", functional.linear, lib=_LIBRARY)

#: The operator: `torch.nn.functional.linear` of float32 tensors in the CPU's memory; it can't be derived.
LINEAR = torch.ops.tvm_conv3d.linear.default
