"""Tools that record computations, and tensors that are more or less than numbers in memory."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tvm_conv3d import Conv3D
from tvm_conv3d.runtime import tracing

os.environ.setdefault("KERAS_BACKEND", "torch")
torch = pytest.importorskip("torch", reason="torch is not installed")

SHAPE = (2, 5, 6, 7, 3)
RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.standard_normal(SHAPE).astype(np.float32))


@pytest.fixture(scope="module")
def layer() -> Conv3D:
    layer = Conv3D(4, 3, name="encoder", bias_initializer="ones")
    layer.build(SHAPE)
    return layer


@pytest.fixture(scope="module")
def model(layer: Conv3D) -> Any:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.relu(layer(x * 2)) + layer.call(x)

    return Model().eval()


@pytest.fixture
def _no_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_no_compiled_code")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_goes_round_a_layer(layer: Conv3D, model: Any, backend: str) -> None:
    graphs: list[Any] = []
    real = torch._dynamo.lookup_backend(backend)

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return real(graph, inputs)

    compiled = torch.compile(model, backend=counted)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        for _ in range(5):
            assert torch.equal(compiled(X), model(X))
    operations = [node.target for graph in graphs for node in graph.graph.nodes if node.op.startswith("call")]
    # what the model does itself, once each, and nothing of what a layer does
    assert len(graphs) == len(operations) == 3
    assert torch.equal(torch.compile(layer, backend=counted)(X), layer(X))
    assert len(graphs) == 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++")
@pytest.mark.usefixtures("_no_compiled_code")
def test_torchs_default_compiler(model: Any) -> None:
    with torch.no_grad():
        assert torch.allclose(torch.compile(model)(X), model(X))


@pytest.mark.usefixtures("_no_compiled_code")
def test_one_graph_is_refused_with_the_reason(model: Any) -> None:
    with pytest.raises(Exception, match="a layer of tvm_conv3d runs compiled code of its own"):
        torch.compile(model, backend="eager", fullgraph=True)(X)


@pytest.mark.usefixtures("_no_compiled_code")
def test_dynamo_goes_on_behind_a_layer_that_failed(layer: Conv3D) -> None:
    def attempt(x: Any) -> Any:
        try:
            return layer(x)
        except ValueError:
            return torch.relu(x)

    graphs: list[Any] = []
    compiled = torch.compile(attempt, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    assert torch.equal(compiled(X[..., :1]), torch.relu(X[..., :1]))
    assert torch.equal(torch.compile(torch.relu, backend=lambda graph, _: graphs.append(graph) or graph)(X), X.relu())
    assert graphs


def test_no_library_is_imported() -> None:
    code = """
import sys
from tvm_conv3d.runtime import tracing
tracing.check(object(), "encoder")
tracing.untraced(lambda: None)()
print([name for name in ("torch", "keras", "jax", "tensorflow", "tvm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _in_make_fx(model: Any) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(model)(X)


def _with_fakes(model: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return model(FakeTensorMode().from_tensor(X))


def _in_forward_mode(model: Any) -> Any:
    with torch.autograd.forward_ad.dual_level():
        return model(torch.autograd.forward_ad.make_dual(X, X))


#: What is done with a model, the error's type, and what it says behind the layer's name.
REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "export": (
        lambda model: torch.export.export(model, (X,)),
        TypeError,
        "hidden from torch.export.*tvm_conv3d.torch.Conv3d",
    ),
    "jit.trace": (
        lambda model: torch.jit.trace(model, X),
        RuntimeError,
        "hidden from torch.jit.trace.*tvm_conv3d.torch.Conv3d",
    ),
    "fx": (torch.fx.symbolic_trace, TypeError, "hidden from torch.fx.symbolic_trace.*torch.fx.wrap"),
    "make_fx": (_in_make_fx, RuntimeError, "hidden from make_fx.*tvm_conv3d.torch.Conv3d"),
    "vmap": (lambda model: torch.func.vmap(model)(X[None]), RuntimeError, "hidden from torch.func.vmap.*the batch"),
    "jvp": (lambda model: torch.func.jvp(model, (X,), (X,)), RuntimeError, "computes no gradients.*detach"),
    "grad": (lambda model: torch.func.grad(lambda x: model(x).sum())(X), RuntimeError, "computes no gradients.*detach"),
    "forward mode": (_in_forward_mode, RuntimeError, "computes no gradients.*detach"),
    "fake": (_with_fakes, TypeError, "fake tensors.*tvm_conv3d.torch.Conv3d"),
    "meta": (lambda model: model(X.to("meta")), TypeError, "on the device meta has a shape only.*compute_output_shape"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_records_is_refused_by_name(model: Any, name: str) -> None:
    do, error, text = REFUSED[name]
    with pytest.raises(error, match=rf"Layer 'encoder' .*{text}") as caught:
        do(model)
    if name != "export":  # which adds where in the model it came about
        assert "\n" not in str(caught.value)


def test_a_fake_mode_around_real_tensors(layer: Conv3D) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match=r"Layer 'encoder' .*FakeTensorMode.*outside"),
    ):
        layer(X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_export_is_refused_by_name(model: Any, dynamo: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    with pytest.raises(Exception, match=r"Layer 'encoder' runs compiled code of its own"):
        torch.onnx.export(model, (X,), io.BytesIO(), dynamo=dynamo)


def test_the_way_out_of_torchs_exports_is_right(layer: Conv3D) -> None:
    inner = torch.nn.Conv3d(3, 4, 3)
    kernel, bias = layer.get_weights()
    with torch.no_grad():
        inner.weight.copy_(torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2)))
        inner.bias.copy_(torch.from_numpy(bias))
        y = inner(X.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(layer(X), y, rtol=1e-4, atol=1e-5)


_INNER = Conv3D(4, 3)


@torch.fx.wrap
def through(x: Any) -> Any:
    return _INNER(x)


def test_the_way_out_of_fx_is_right() -> None:
    traced = torch.fx.symbolic_trace(lambda x: through(x) + 1)
    assert torch.equal(traced(X), _INNER(X) + 1)


def test_keras_tensors(layer: Conv3D) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    with pytest.raises(TypeError, match=r"Layer 'encoder' needs numbers, and a KerasTensor.*from_keras"):
        layer(keras.Input(SHAPE[1:]))


def test_jax_tracers(layer: Conv3D) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    x = jax.numpy.asarray(X.numpy())
    for do in (jax.jit(layer), jax.grad(lambda v: layer(v).sum()), lambda v: jax.vmap(layer)(v[None])):
        with pytest.raises(TypeError, match=r"Layer 'encoder' .*hidden from jax.jit.*pure_callback"):
            do(x)
    shape = jax.ShapeDtypeStruct(SHAPE, "float32")
    with pytest.raises(TypeError, match=r"Layer 'encoder' needs numbers.*compute_output_shape"):
        layer(shape)
    result = jax.ShapeDtypeStruct(layer.compute_output_shape(SHAPE), "float32")
    through = jax.jit(lambda v: jax.pure_callback(layer, result, v))
    np.testing.assert_array_equal(through(x), layer(x))


def test_tensorflow_graphs(layer: Conv3D) -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    x = tensorflow.constant(X.numpy())
    with pytest.raises(TypeError, match=r"Layer 'encoder' .*hidden from tf.function.*tf.numpy_function"):
        tensorflow.function(layer)(x)
    through = tensorflow.function(lambda v: tensorflow.numpy_function(layer, [v], tensorflow.float32))
    np.testing.assert_array_equal(through(x), layer(x))


class Plain(torch.Tensor):
    """Nothing but another class."""


class Off(torch.Tensor):
    """Gives plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Tagged(torch.Tensor):
    """Hands an attribute on, as MONAI's MetaTensor does."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, cls):
            result.tag = next(a.tag for a in args if isinstance(a, cls) and hasattr(a, "tag"))
        return result


def _subclasses() -> dict[str, Any]:
    tagged = X.as_subclass(Tagged)
    tagged.tag = "t1"
    return {"plain": X.as_subclass(Plain), "off": X.as_subclass(Off), "tagged": tagged, "leaf": torch.nn.Parameter(X)}


@pytest.mark.parametrize("name", ["plain", "off", "tagged", "leaf"])
@pytest.mark.parametrize("activation", [None, "softmax", torch.relu], ids=["none", "softmax", "torch's"])
def test_subclasses_come_back_as_from_torch(name: str, activation: Any) -> None:
    layer = Conv3D(4, 3, activation=activation)
    x = _subclasses()[name]
    with torch.no_grad():
        like = torch.nn.functional.conv3d(x, torch.ones(2, 5, 1, 1, 1))
        y = layer(x)
        with torch.device("cpu"):  # a mode, which sees functions before the subclass does
            assert type(layer(x)) is type(like)
        assert type(y) is type(like)
        assert getattr(y, "tag", None) == getattr(like, "tag", None)
        assert torch.equal(y.as_subclass(torch.Tensor), layer(X))


def test_monais_tensors(layer: Conv3D) -> None:
    data = pytest.importorskip("monai.data", reason="MONAI is not installed")
    x = data.MetaTensor(X, affine=torch.eye(4) * 2, meta={"patient": "7"})
    y = layer(x)
    assert isinstance(y, data.MetaTensor)
    assert torch.equal(y.affine, x.affine)
    assert y.meta["patient"] == "7"


def test_wrappers_of_tensors_are_refused(layer: Conv3D) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    with pytest.raises(TypeError, match=r"memory of its own.*TwoTensor.*Unwrap"):
        layer(TwoTensor(X, X))


def test_the_hook_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each thread its own, also after an error and from within another call."""

    class Hook:
        of_thread = threading.local()

        def set_eval_frame(self, new: Any) -> Any:
            before = getattr(self.of_thread, "now", None)
            self.of_thread.now = new
            return before

    hook = Hook()
    monkeypatch.setitem(sys.modules, tracing._HOOK, hook)
    seen: list[Any] = []

    @tracing.untraced
    def call(depth: int) -> None:
        seen.append(hook.of_thread.now)
        if depth:
            call(depth - 1)
        raise ValueError

    def work(number: int) -> None:
        hook.set_eval_frame(number)
        for _ in range(50):
            with pytest.raises(ValueError):
                call(2)
            assert hook.of_thread.now == number
        finished.append(number)

    finished: list[int] = []
    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(finished) == [0, 1, 2, 3]
    assert set(seen) == {None}
