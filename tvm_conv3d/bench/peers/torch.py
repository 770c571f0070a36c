"""PyTorch on the CPU, in both memory formats, and with the weights packed and relu fused as its compiler would do."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_conv3d.bench.peers import Prepared, channels_first, filters_first, like_spec
from tvm_conv3d.spec import Conv3DSpec


class Torch:
    def __init__(self, threads: int) -> None:
        import torch

        self._torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def versions(self) -> dict[str, str]:
        return {"torch": str(self._torch.__version__)}

    def modes(self, spec: Conv3DSpec) -> list[str]:
        return ["ncdhw", "ndhwc", "packed"]

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        torch = self._torch
        dtype = getattr(torch, spec.dtype)
        module = self._module(spec, kernel, bias).to(dtype).eval()
        data = torch.from_numpy(channels_first(x, spec.data_format)).to(dtype)
        if mode != "ncdhw":
            module, data = (what.to(memory_format=torch.channels_last_3d) for what in (module, data))
        if mode == "packed":
            module = self._packed(spec, module, data)

        def run() -> Any:
            with torch.inference_mode():
                return module(data)

        wide = torch.float64 if spec.dtype == "float64" else torch.float32
        return Prepared(run, lambda result: like_spec(result.to(wide).numpy(), spec))

    def _module(self, spec: Conv3DSpec, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
        nn, torch = self._torch.nn, self._torch
        symmetric = all(before == after for before, after in spec.pads)
        # PyTorch's `same` puts the odd cell behind, as Keras does, but exists for stride 1 only.
        padding = tuple(before for before, _ in spec.pads) if symmetric else "same" if max(spec.strides) == 1 else 0
        convolution = nn.Conv3d(
            spec.channels,
            spec.filters,
            spec.kernel,
            stride=spec.strides,
            padding=padding,
            dilation=spec.dilation,
            groups=spec.groups,
            bias=bias is not None,
        )
        convolution.weight.data = torch.from_numpy(filters_first(kernel))
        if bias is not None:
            convolution.bias.data = torch.from_numpy(bias)
        pad = [nn.ConstantPad3d([n for pair in reversed(spec.pads) for n in pair], 0.0)] if padding == 0 else []
        relu = [nn.ReLU(inplace=True)] if spec.post_ops == ("relu",) else []
        return nn.Sequential(*pad, convolution, *relu)

    def _packed(self, spec: Conv3DSpec, module: Any, data: Any) -> Any:
        """What its compiler makes of a frozen convolution: one oneDNN call with weights laid out beforehand."""
        torch = self._torch
        convolution = next(part for part in module if isinstance(part, torch.nn.Conv3d))
        pads, ahead = [before for before, _ in spec.pads], []
        if any(before != after for before, after in spec.pads):  # the call takes symmetric pads only
            ahead, pads = [n for pair in reversed(spec.pads) for n in pair], [0, 0, 0]
            data = torch.nn.functional.pad(data, ahead)
        geometry = (pads, list(spec.strides), list(spec.dilation), spec.groups)
        weight = convolution.weight.detach().contiguous().to_mkldnn()
        weight = torch._C._nn.mkldnn_reorder_conv3d_weight(weight, *geometry, list(data.shape))
        bias = None if convolution.bias is None else convolution.bias.detach()
        operator, widen = torch.ops.mkldnn._convolution_pointwise, torch.nn.functional.pad
        activation = "relu" if spec.post_ops == ("relu",) else "none"
        if ahead:
            return lambda x: operator(widen(x, ahead), weight, bias, *geometry, activation, [], "")
        return lambda x: operator(x, weight, bias, *geometry, activation, [], "")
