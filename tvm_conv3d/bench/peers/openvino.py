"""OpenVINO: a compiled model with constant weights, in its own layout and behind the transposes of the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_conv3d.bench.peers import Prepared, channels_first, filters_first, like_spec
from tvm_conv3d.spec import Conv3DSpec

PRECISION = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class OpenVINO:
    def __init__(self, threads: int) -> None:
        import openvino

        self._openvino, self._threads = openvino, threads

    def versions(self) -> dict[str, str]:
        return {"openvino": str(self._openvino.__version__).partition("-")[0]}

    def modes(self, spec: Conv3DSpec) -> list[str]:
        return ["ncdhw", "ndhwc"]

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        if spec.dtype not in PRECISION:
            raise ValueError(f"OpenVINO's CPU plug-in has no {spec.dtype} convolution")
        openvino = self._openvino
        model = self._model(spec, kernel, bias)
        data = channels_first(x, spec.data_format)
        if mode == "ndhwc":
            model = self._with_channels_last(model)
            data = np.ascontiguousarray(np.moveaxis(data, 1, -1))
        # Unasked, it computes float32 models in bfloat16 where the CPU has instructions for that.
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": PRECISION[spec.dtype],
        }
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(data, shared_memory=True))

        def to_numpy(_: Any) -> np.ndarray:
            result = np.array(request.get_output_tensor().data)
            return like_spec(np.moveaxis(result, -1, 1) if mode == "ndhwc" else result, spec)

        def run(data: np.ndarray = data) -> None:  # the request holds an address, so this keeps the array
            request.infer()

        return Prepared(run, to_numpy)

    def _model(self, spec: Conv3DSpec, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
        openvino = self._openvino
        from openvino import opset13 as ops

        shape = (spec.batch, spec.channels, *spec.size)
        parameter = ops.parameter(list(shape), np.float32)
        weights = filters_first(kernel.astype(np.float32))
        before, after = zip(*spec.pads, strict=True)
        geometry = (list(spec.strides), list(before), list(after), list(spec.dilation))
        if spec.groups == 1:
            node = ops.convolution(parameter, ops.constant(weights), *geometry)
        else:
            grouped = weights.reshape(spec.groups, spec.group_filters, *weights.shape[1:])
            node = ops.group_convolution(parameter, ops.constant(grouped), *geometry)
        if bias is not None:
            node = ops.add(node, ops.constant(bias.astype(np.float32).reshape(1, -1, 1, 1, 1)))
        if spec.post_ops == ("relu",):
            node = ops.relu(node)
        return openvino.Model([ops.result(node)], [parameter], "layer")

    def _with_channels_last(self, model: Any) -> Any:
        openvino = self._openvino
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_layout(openvino.Layout("NDHWC"))
        steps.input().model().set_layout(openvino.Layout("NCDHW"))
        steps.output().model().set_layout(openvino.Layout("NCDHW"))
        steps.output().tensor().set_layout(openvino.Layout("NDHWC"))
        return steps.build()
