"""ONNX Runtime: a session with all graph optimisations, its buffers bound beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_conv3d.bench.peers import Prepared, channels_first, filters_first, like_spec
from tvm_conv3d.spec import Conv3DSpec

OPSET = 17


class ONNXRuntime:
    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self._onnx, self._runtime, self._threads = onnx, onnxruntime, threads

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": self._runtime.__version__, "onnx": self._onnx.__version__}

    def modes(self, spec: Conv3DSpec) -> list[str]:
        return ["ncdhw"]

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        if spec.dtype == "bfloat16":
            raise ValueError("ONNX Runtime's CPU provider has no bfloat16 convolution")
        runtime = self._runtime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        model = self._model(spec, kernel, bias).SerializeToString()
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        data = channels_first(x, spec.data_format).astype(spec.dtype)
        result = np.empty((spec.batch, spec.filters, *spec.out_size), spec.dtype)
        binding = session.io_binding()
        binding.bind_cpu_input("x", data)
        binding.bind_output("y", "cpu", 0, result.dtype, result.shape, result.ctypes.data)

        def run(data: np.ndarray = data) -> np.ndarray:  # the binding holds an address, so this keeps the array
            session.run_with_iobinding(binding)
            return result

        return Prepared(run, lambda array: like_spec(array, spec))

    def _model(self, spec: Conv3DSpec, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
        helper, from_array = self._onnx.helper, self._onnx.numpy_helper.from_array
        element = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        constants = [from_array(filters_first(kernel).astype(spec.dtype), "w")]
        if bias is not None:
            constants.append(from_array(bias.astype(spec.dtype), "b"))
        before, after = zip(*spec.pads, strict=True)
        relu = spec.post_ops == ("relu",)
        convolution = helper.make_node(
            "Conv",
            ["x", *(constant.name for constant in constants)],
            ["sum" if relu else "y"],
            kernel_shape=spec.kernel,
            strides=spec.strides,
            dilations=spec.dilation,
            pads=(*before, *after),
            group=spec.groups,
        )
        nodes = [convolution, *([helper.make_node("Relu", ["sum"], ["y"])] if relu else [])]
        inputs = [helper.make_tensor_value_info("x", element, (spec.batch, spec.channels, *spec.size))]
        outputs = [helper.make_tensor_value_info("y", element, (spec.batch, spec.filters, *spec.out_size))]
        graph = helper.make_graph(nodes, "layer", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
