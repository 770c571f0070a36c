"""Where the volumes of a replay lie: in one piece of memory, no two in one place at one time."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from tvm_conv3d.runtime import output_pool  # noqa: E402
from tvm_conv3d.torch.graph import placement  # noqa: E402
from tvm_conv3d.torch.graph.placement import Volume, offsets  # noqa: E402

#: Bytes of a volume of the networks below.
NBYTES = 8 * 32**3 * 4


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = output_pool._Store()
    monkeypatch.setattr(output_pool, "_store", made)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_no_two_volumes_share_a_place_at_one_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    volumes = []
    for _ in range(int(rng.integers(1, 30))):
        first = int(rng.integers(0, 40))
        volumes.append(Volume(first, first + int(rng.integers(0, 12)), int(rng.integers(1, 1 << 20))))
    starts, total = offsets(volumes)
    assert total == max(start + volume.nbytes for start, volume in zip(starts, volumes, strict=True))
    for (at, one), (beside, other) in itertools.combinations(zip(starts, volumes, strict=True), 2):
        apart = at + one.nbytes <= beside or beside + other.nbytes <= at
        assert apart or one.last < other.first or other.last < one.first
    # at some time this many bytes are needed at once; no plan takes fewer
    needed = max(sum(v.nbytes for v in volumes if v.first <= time <= v.last) for time in range(52))
    assert needed <= total <= 1.5 * needed + 4096 * len(volumes)


def test_a_small_volume_does_not_take_a_large_ones_place() -> None:
    # a U-Net's last stage: the volume from below, the skip, the former as large as the latter, and the sum
    low, skip, up, sums = Volume(2, 5, 100), Volume(1, 4, 1 << 20), Volume(5, 6, 1 << 20), Volume(4, 7, 1 << 20)
    starts, total = offsets([low, skip, up, sums])
    assert starts[1] == starts[2]
    assert total == starts[0] + low.nbytes == (2 << 20) + 100


class Unet(nn.Module):
    """Two levels, whose skip is concatenated with what comes from below."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 16, 3, padding=1)
        self.second = nn.Conv3d(16, 16, 3, padding=1)
        self.down = nn.Conv3d(16, 16, 3, 2, 1)
        self.up = nn.ConvTranspose3d(16, 16, 2, 2)
        self.joined = nn.Conv3d(32, 16, 3, padding=1)
        self.norm = nn.InstanceNorm3d(16)
        self.last = nn.Conv3d(16, 2, 1)

    def forward(self, x: Any) -> Any:
        skip = torch.relu(self.second(torch.relu(self.first(x))))
        low = torch.relu(self.down(skip))
        return self.last(torch.relu(self.norm(self.joined(torch.cat([self.up(low), skip], 1)))))


def test_a_unets_last_stage_takes_two_volumes(store: Any) -> None:
    torch.manual_seed(0)
    net, x = Unet().eval(), torch.randn(1, 1, 56, 56, 56)
    fast = ours.accelerate(net, x)
    volume = 16 * x.nbytes
    with torch.inference_mode():
        for _ in range(3):
            result = fast(x)
        wanted = net.double()(x.double())
    assert float((result - wanted).norm() / wanted.norm()) < 1e-4
    # the volume from below is an eighth of one; two channels of results, once in either order of memory
    assert 2 * volume <= sum(block.memory.nbytes for block in store._blocks) <= 2.5 * volume


class Views(nn.Module):
    """What is read long after it was made, by views, sums in place and results of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv3d(8, 8, 3, padding=1) for _ in range(6))

    def forward(self, x: Any) -> Any:
        first, second, third, *others = self.convolutions
        a = first(x)
        half, other = a.chunk(2, 1)
        b = second(torch.relu(a))
        c = third(b)
        b += c
        rows = b.flatten(2)
        for convolution in others:
            c = torch.tanh(convolution(c) * 0.1)
        return torch.cat([half, other], 1) + c, rows.amax(2), rows.view_as(b)[:, :1], b.transpose(1, 4)


def test_views_keep_what_they_show(store: Any) -> None:
    net, x = Views().eval(), torch.randn(1, 8, 32, 32, 32)
    fast = ours.accelerate(net, x)
    assert fast.report.replayed[0].reason is None
    with torch.inference_mode():
        for _ in range(2):
            results, wanted = fast(x), net(x)
            later = fast(-x)
            for result, right in zip(results, wanted, strict=True):
                torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-4)
            assert not torch.equal(later[0], results[0])


def test_results_outlive_the_next_calls(store: Any) -> None:
    net = nn.Sequential(*(nn.Conv3d(8, 8, 3, padding=1) for _ in range(4))).eval()
    x = torch.randn(1, 8, 32, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    fast = ours.accelerate(net, x)
    with torch.inference_mode():
        kept = [fast(x * factor) for factor in (1, 2, 3)]
        for factor, result in enumerate(kept, 1):
            torch.testing.assert_close(result, net(x * factor), rtol=1e-4, atol=1e-5)


def test_threads_have_memory_of_their_own(store: Any) -> None:
    net = nn.Sequential(*(nn.Conv3d(8, 8, 3, padding=1) for _ in range(4))).eval()
    inputs = [torch.randn(1, 8, 32, 32, 32) for _ in range(4)]
    fast = ours.accelerate(net, inputs[0])
    with torch.inference_mode():
        wanted = [net(x) for x in inputs]
    found: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        with torch.inference_mode():
            found[number] = [fast(inputs[number]) for _ in range(8)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, right in enumerate(wanted):
        assert len(found[number]) == 8
        for result in found[number]:
            torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-5)


def test_an_error_leaves_no_offer(store: Any) -> None:
    def fails() -> None:
        raise MemoryError

    memory = np.empty(NBYTES, np.uint8)
    with pytest.raises(MemoryError):
        placement._Placed(fails, 0, NBYTES)(memory)
    made = output_pool.empty((NBYTES,), np.dtype(np.uint8))
    assert not np.shares_memory(made, memory)


def test_an_offer_is_taken_once_by_what_fits(store: Any) -> None:
    memory = np.empty(NBYTES, np.uint8)
    output_pool.offer(memory)
    try:
        other = output_pool.empty((NBYTES // 2,), np.dtype(np.uint8))
        taken = output_pool.empty((NBYTES // 4,), np.dtype(np.float32))
        again = output_pool.empty((NBYTES // 4,), np.dtype(np.float32))
    finally:
        output_pool.offer(None)
    assert np.shares_memory(taken, memory)
    assert not np.shares_memory(other, memory) and not np.shares_memory(again, memory)
