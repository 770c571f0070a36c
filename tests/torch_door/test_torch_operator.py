"""What torch asks of an operator: gradients, compilers, exporters, autocast, vmap, fake tensors, several processes."""

from __future__ import annotations

import copy
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from torch_geometries import GEOMETRIES, given  # noqa: E402
from tvm_conv3d.torch.operators.convolution import CONVOLUTION  # noqa: E402

LAST = torch.channels_last_3d


@pytest.fixture
def _no_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Network(torch.nn.Module):
    """Down and up again; with `kinds` of torch's own it is what ours is compared with."""

    def __init__(self, kinds: Any = ours) -> None:
        super().__init__()
        self.first = kinds.Conv3d(3, 8, 3, padding="same")
        self.down = kinds.Conv3d(8, 8, (2, 3, 3), stride=2, padding=1, padding_mode="replicate")
        self.up = kinds.ConvTranspose3d(8, 4, 2, stride=2)

    def forward(self, x: Any) -> Any:
        return self.up(torch.relu(self.down(torch.relu(self.first(x)))))


def networks() -> tuple[Any, Any]:
    theirs, mine = Network(torch.nn), Network()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def close(result: Any, wanted: Any) -> None:
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)


X = torch.randn(2, 3, 6, 8, 10, generator=torch.Generator().manual_seed(0))


# Gradients


@pytest.mark.parametrize(("name", "bias"), [*((name, True) for name in GEOMETRIES), ("strided", False)])
def test_gradients(name: str, bias: bool) -> None:
    geometry = GEOMETRIES[name]
    tensors = given(geometry, bias=bias)
    assert torch.autograd.gradcheck(lambda *t: CONVOLUTION(*t, *geometry), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: CONVOLUTION(*t, *geometry), tensors, fast_mode=True)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_torchs_own_checks_of_operators(name: str) -> None:
    for memory_format in (torch.contiguous_format, LAST):
        x, *weights = given(GEOMETRIES[name], torch.float32)
        x = x.detach().to(memory_format=memory_format).requires_grad_()
        torch.library.opcheck(CONVOLUTION, (x, *weights, *GEOMETRIES[name]))


def test_gradients_are_torchs_whatever_is_frozen() -> None:
    theirs, mine = networks()
    for frozen in ("first.weight", "down.bias", "up.weight"):
        for each in (theirs, mine):
            each.zero_grad()
            each.get_parameter(frozen).requires_grad_(False)
            each(X).square().sum().backward()
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert not mine(X).requires_grad
    with torch.inference_mode():
        close(mine(X), theirs(X))
    assert ours.counters().torch == {}


def test_weights_that_changed_before_backward_are_refused_as_in_torch() -> None:
    conv = ours.Conv3d(3, 4, 3)
    y = conv(X.clone().requires_grad_())
    with torch.no_grad():
        conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Compilers and exporters


@pytest.mark.usefixtures("_no_compiled_code")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_compile_without_a_break(memory_format: Any) -> None:
    theirs, mine = networks()
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    x = X.clone(memory_format=memory_format).requires_grad_()
    for _ in range(2):
        result = compiled(x)
        close(result, theirs(x))
        assert result.is_contiguous(memory_format=memory_format)
    result.sum().backward()
    close(x.grad, torch.autograd.grad(theirs(x).sum(), x)[0])
    # another size, then any size
    for depth in (4, 8):
        close(compiled(x[:, :, :depth]), theirs(x[:, :, :depth]))
    # four calls, and the gradients of inputs and weights of one of them
    assert ours.counters() == ours.Counters(3 * 6, {})


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++")
@pytest.mark.usefixtures("_no_compiled_code")
def test_torchs_default_compiler() -> None:
    theirs, mine = networks()
    compiled = torch.compile(mine, fullgraph=True)
    x = X.to(memory_format=LAST)
    with torch.no_grad():
        close(compiled(x), theirs(x))
    for each in (compiled, theirs):
        each(X).sum().backward()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("_no_compiled_code")
def test_what_a_graph_leaves_to_torch_is_counted_once() -> None:
    conv = ours.Conv3d(3, 4, 3)
    given = {name: value.to(torch.complex64) for name, value in conv.named_parameters()}
    compiled = torch.compile(
        lambda x: torch.func.functional_call(conv, given, (x,)), fullgraph=True, backend="aot_eager"
    )
    for _ in range(3):
        close(compiled(X.to(torch.complex64)).shape, torch.Size([2, 4, 4, 6, 8]))
    assert ours.counters() == ours.Counters(0, {"numbers of type torch.complex64": 1})


def test_export() -> None:
    theirs, mine = networks()
    batch, width = torch.export.Dim("batch"), torch.export.Dim("half", min=2, max=40)
    shapes = {"x": {0: batch, 4: 2 * width}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(mine, (X,), dynamic_shapes=shapes), file)
    file.seek(0)
    program = torch.export.load(file)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(CONVOLUTION) == 3
    for x in (X, X[:1], X[..., :6]):
        close(program.module()(x), theirs(x))


def test_trace() -> None:
    theirs, mine = networks()
    traced = torch.jit.trace(mine, X)
    assert "tvm_conv3d::convolution" in str(traced.inlined_graph)
    close(traced(X[:1]), theirs(X[:1]))


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_gets_torchs_operators(dynamo: bool) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")
    file = io.BytesIO()
    torch.onnx.export(ours.Conv3d(3, 4, 3).eval(), (X,), file, dynamo=dynamo)
    assert b"Conv" in file.getvalue() and b"tvm_conv3d::" not in file.getvalue()
    assert ours.counters().torch == {"an export to ONNX": 1}


def test_fake_tensors_have_the_results_strides() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    # what torch's own borders of channels_last are like, its fake tensors do not know
    mine = torch.nn.Sequential(ours.Conv3d(3, 8, 3, padding="same"), torch.nn.ReLU(), ours.ConvTranspose3d(8, 4, 2))
    for x in (X, X.to(memory_format=LAST), X[..., 1:], X.to(memory_format=LAST)[:, :, 1:]):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mine(mode.from_tensor(x))
        real = mine(x)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    meta = copy.deepcopy(mine).to("meta")(X.to("meta"))
    assert meta.shape == (2, 4, 7, 9, 11)
    with pytest.raises(RuntimeError, match="channel"):
        copy.deepcopy(mine).to("meta")(X[:, :2].to("meta"))


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: Any) -> None:
    theirs, mine = networks()
    with torch.autocast("cpu", dtype):
        for x in (X, X.to(dtype), X.to(memory_format=LAST)):
            result, wanted = mine(x), theirs(x)
            assert result.dtype == wanted.dtype == dtype
            torch.testing.assert_close(result, wanted, rtol=0.05, atol=0.02)
        result.float().sum().backward()
        assert mine.first.weight.grad.dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            assert mine(X).dtype == torch.float32
        assert copy.deepcopy(mine).double()(X.double()).dtype == torch.float64
    assert ours.counters().torch == {}


@pytest.mark.usefixtures("_no_compiled_code")
def test_autocast_in_a_graph() -> None:
    _, mine = networks()
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        # a further size of a layer has another plan at its first call, and so other last bits
        mine(X)
        assert torch.equal(compiled(X), mine(X))


# Transforms


@pytest.mark.parametrize("in_dim", [0, 1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_vmap_over_inputs(in_dim: int, transposed: bool) -> None:
    kind = ours.ConvTranspose3d if transposed else ours.Conv3d
    conv = kind(3, 4, 3, padding=1)
    x = torch.randn(2, 4, 3, 5, 6, 7).movedim(0, in_dim)
    mapped = torch.vmap(conv, in_dim)(x)
    close(mapped, torch.stack([conv(each) for each in x.unbind(in_dim)]))
    close(torch.vmap(conv)(X), conv(X))
    assert ours.counters().torch == {}


#: Axes of input, weight and bias that are mapped.
MAPPED = [(0, 0, 0), (None, 0, 0), (0, 0, None), (0, None, 0), (None, None, 0), (1, 2, 1)]


@pytest.mark.parametrize(
    ("name", "mapped"),
    [*(("plain", axes) for axes in MAPPED), *(("transposed", axes) for axes in MAPPED[:4:3]), ("six pads", MAPPED[0])],
)
def test_vmap_over_weights(name: str, mapped: tuple[Any, ...]) -> None:
    tensors = [t.detach() for t in given(GEOMETRIES[name], torch.float32)]
    several = [
        t if dim is None else torch.stack([t, t.flip(0), 2 * t], dim) for t, dim in zip(tensors, mapped, strict=True)
    ]
    result = torch.vmap(lambda *t: CONVOLUTION(*t, *GEOMETRIES[name]), mapped)(*several)
    for number in range(3):
        one = [t if dim is None else t.select(dim, number) for t, dim in zip(several, mapped, strict=True)]
        close(result[number], CONVOLUTION(*one, *GEOMETRIES[name]))


def test_ensembles() -> None:
    several = [ours.Conv3d(3, 4, 3) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(several)
    result = torch.vmap(lambda p, b: torch.func.functional_call(several[0], (p, b), (X,)))(parameters, buffers)
    close(result, torch.stack([each(X) for each in several]))


def test_transforms_that_derive_are_torchs_and_counted() -> None:
    theirs, mine = networks()
    for x in (X, X[:1]):
        results = []
        for each in (theirs, mine):
            parameters = {name: p.detach() for name, p in each.named_parameters()}

            def loss(given: Any, sample: Any, each: Any = each) -> Any:
                return torch.func.functional_call(each, given, (sample[None],)).square().sum()

            results.append(torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x))
        for name in results[0]:
            torch.testing.assert_close(results[1][name], results[0][name], rtol=1e-3, atol=1e-3)
    tangent = torch.func.jvp(mine, (X,), (torch.ones_like(X),))[1]
    close(tangent, torch.func.jvp(theirs, (X,), (torch.ones_like(X),))[1])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        close(torch.autograd.forward_ad.unpack_dual(mine(dual)).tangent, tangent)
    ((reason, count),) = ours.counters().torch.items()
    assert "torch.func" in reason and count == 4 * 3
    assert ours.counters().ours == 0


# Processes

DDP = """
import os
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
import tvm_conv3d.torch as ours

rank, place = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
torch.manual_seed(0)
conv = ours.Conv3d(2, 3, 3)
x = torch.randn(4, 2, 4, 5, 6)
network = DistributedDataParallel(conv)
network(x[2 * rank :][:2]).sum().backward()
weight, bias = conv.weight.double(), conv.bias.double()
wanted = torch.autograd.grad(torch.nn.functional.conv3d(x.double(), weight, bias).sum() / 2, weight)[0].float()
torch.testing.assert_close(conv.weight.grad, wanted, rtol=1e-4, atol=1e-4)
assert ours.counters() == ours.Counters(2, {})
torch.distributed.destroy_process_group()
# gloo's threads outlive it, and now and then abort an interpreter that ends, with torch's own layers as well (2.13)
os._exit(0)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    # what frameworks say of ranks would be taken for this machine's
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", DDP]
    both = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_without_torch_a_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import tvm_conv3d; tvm_conv3d.conv3d; import tvm_conv3d.torch"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "needs PyTorch, which is not installed. Install it: pip install 'tvm-conv3d[torch]'" in found.stderr
