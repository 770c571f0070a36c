"""Scores of attention are written over where nobody else sees them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn import functional  # noqa: E402  (needs torch)

from tvm_conv3d.torch.graph import attention, recording, replay, rewriting  # noqa: E402

#: Tokens and channels of a volume.
TOKENS, WIDTH = 6 * 8 * 8, 8


class Net(torch.nn.Module):
    """A convolution, and attention to its positions.

    Args:
        attend: weights of three heads and of all pairs of tokens, by their scores; it gets the module, too.
    """

    def __init__(self, attend: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(4, 3 * WIDTH, 3, padding=1)
        self.bias = torch.nn.Parameter(torch.randn(3, TOKENS, TOKENS))
        self.attend = attend
        self.last = torch.zeros(1)

    def forward(self, x: Any) -> Any:
        tokens = self.convolution(x).flatten(2).unflatten(1, (3, WIDTH))
        return self.attend(self, tokens.transpose(2, 3) @ tokens) @ tokens.transpose(2, 3)


def kept(module: Any, scores: Any) -> Any:
    module.last = scores
    return (scores + module.bias).softmax(-1)


def both(module: Any, scores: Any) -> Any:
    return torch.softmax(scores + module.bias, -1) + 0.01 * scores


def grown(module: Any, scores: Any) -> Any:
    # a batch of 2
    return functional.softmax(scores + torch.stack([module.bias, -module.bias]), -1)[1:]


#: How weights are made, and the functions that write over scores in the replay, in their order.
WAYS: dict[str, tuple[Any, list[str]]] = {
    "plain": (lambda m, s: s.softmax(-1), ["softmax_"]),
    "bias": (lambda m, s: functional.softmax(s + m.bias, dim=-1), ["add_", "softmax_"]),
    "before": (lambda m, s: torch.softmax(m.bias + s, 2), ["add_", "softmax_"]),
    "views": (
        lambda m, s: (s.view(3, TOKENS, TOKENS) + m.bias).reshape(1, 3, TOKENS, -1).softmax(dim=3),
        ["add_", "softmax_"],
    ),
    "along the first": (lambda m, s: functional.softmax(s[0] + m.bias, 0)[None], []),
    "in float64": (lambda m, s: functional.softmax(s + m.bias, -1, dtype=torch.float64).to(s.dtype), ["add_"]),
    "less": (lambda m, s: torch.softmax(torch.add(s, m.bias, alpha=0.5), -1), ["softmax_"]),
    "kept": (kept, ["softmax_"]),
    "seen by others": (both, ["softmax_", "add_"]),
    "grown": (grown, ["softmax_"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_scores_are_written_over(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a part of the scores at a time
    monkeypatch.setattr(attention, "_PART", 700_000)
    attend, expected = WAYS[way]
    torch.manual_seed(0)
    net, x = Net(attend).eval(), torch.randn(1, 4, 6, 8, 8)
    with torch.inference_mode():
        found = recording.record(net, lambda: net(x), [x])
        graph = found.graph
        assert graph is not None and rewriting.rewrite(graph) is None
        written = [
            node.target.__name__ for node in graph.nodes if node.target in (torch.Tensor.add_, attention.softmax_)
        ]
        assert written == expected
        # of other values than those that were recorded
        results = replay.compiled(graph)(net, 2 * x)
        right = [net.double()(2 * x.double())]
        if way == "kept":
            right.append(net.last)
    assert len(results) == len(right)
    for result, exact in zip(results, right, strict=True):
        assert float((result.double() - exact).norm() / exact.norm()) < 1e-5


def test_small_scores_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MIN_BYTES", 3 * TOKENS * TOKENS * 4 + 1)
    net, x = Net(WAYS["bias"][0]).eval(), torch.randn(1, 4, 6, 8, 8)
    with torch.inference_mode():
        graph = recording.record(net, lambda: net(x), [x]).graph
        assert graph is not None and rewriting.rewrite(graph) is None
    assert attention.softmax_ not in {node.target for node in graph.nodes}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++")
def test_compilers_plan_their_own_memory() -> None:
    torch.compiler.reset()
    net, x = Net(WAYS["bias"][0]).eval(), torch.randn(1, 4, 6, 8, 8)
    with torch.inference_mode():
        found = torch.compile(net, backend="tvm_conv3d")(x)
        right = net.double()(x.double())
    assert float((found.double() - right).norm() / right.norm()) < 1e-5
