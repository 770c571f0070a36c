"""Linear layers by oneDNN as an operator of torch's, `torch.ops.tvm_conv3d.linear`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tvm_conv3d.torch.operators import autograd

_LIBRARY = torch.library.Library("tvm_conv3d", "FRAGMENT")


def _on_cpu(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    parameters = (weight,) if bias is None else (weight, bias)
    # oneDNN would read parameters that lie otherwise as if they lay so: torch calls it with what inductor has laid out
    by_onednn = all(each.is_contiguous() and each.dtype == torch.float32 for each in parameters)
    if not by_onednn or input.dtype != torch.float32:
        return functional.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise.default(input.contiguous(), weight, bias, "none", [], "")


_LIBRARY.define("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl("linear", _on_cpu, "CPU")
#: The operator: `torch.nn.functional.linear`; of contiguous float32 weights in the CPU's memory by oneDNN.
LINEAR = torch.ops.tvm_conv3d.linear.default

_LIBRARY.impl("linear", autograd.kernel(LINEAR, functional.linear), "Autograd")
torch.library.register_fake("tvm_conv3d::linear", functional.linear, lib=_LIBRARY)
