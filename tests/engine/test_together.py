"""What layers take together: time is given up where it saves the most bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_conv3d.engine.together import Option, choose

#: Fast and large, a little slower and half as large, much slower and small.
LAYER = [Option(100.0, 80), Option(101.0, 40), Option(150.0, 10)]

#: A layer that takes most of the time.
LONG = [Option(900.0, 5), Option(1000.0, 1)]


@pytest.mark.parametrize(
    ("share", "enough", "wanted"),
    [
        # nothing may be lost, or nothing needs to be saved
        (0.0, 0, [0, 0]),
        (1.0, 85, [0, 0]),
        (1.0, 84, [0, 1]),
        # of 1000, what is lost: 1, 51, 150
        (0.0009, 0, [0, 0]),
        (0.001, 0, [0, 1]),
        (0.049, 0, [0, 1]),
        (0.05, 0, [0, 2]),
        (1.0, 0, [1, 2]),
    ],
)
def test_cases(share: float, enough: int, wanted: list[int]) -> None:
    assert choose([LONG, LAYER], share, enough) == wanted


def test_options_above_the_hull_are_passed_over() -> None:
    layer = [Option(10.0, 100), Option(19.0, 90), Option(20.0, 0)]
    assert choose([layer], 1.0, 0) == [2]
    assert choose([layer], 0.95, 0) == [0]


def test_what_costs_nothing_is_taken() -> None:
    assert choose([[Option(10.0, 100), Option(10.0, 50), Option(10.0, 20)]], 0.0, 0) == [2]
    assert choose([[Option(10.0, 100)]], 1.0, 0) == [0]
    assert choose([], 1.0, 0) == []


def test_a_step_that_is_too_long_ends_its_layer_only() -> None:
    first = [Option(100.0, 1000), Option(150.0, 10)]
    second = [Option(100.0, 100), Option(110.0, 20)]
    assert choose([first, second], 0.1, 0) == [0, 1]


@pytest.mark.parametrize(
    ("rate", "wanted"), [(0.001, [0, 0]), (0.003, [0, 1]), (0.13, [0, 1]), (0.14, [0, 2]), (3.0, [1, 2])]
)
def test_what_saves_too_little_is_not_taken(rate: float, wanted: list[int]) -> None:
    # of 1000 and 85, steps lose 1 for 40, 49 for 30 and 100 for 4
    assert choose([LONG, LAYER], 1.0, 0, rate) == wanted


def _layer(steps: list[tuple[float, int]]) -> list[Option]:
    found = [Option(10.0, 1000)]
    for lost, saved in steps:
        found.append(Option(found[-1].cost + lost, found[-1].nbytes - saved))
    return found


_LAYERS = st.lists(
    st.lists(st.tuples(st.integers(0, 30).map(float), st.integers(1, 200)), max_size=4).map(_layer),
    min_size=1,
    max_size=4,
)


@given(layers=_LAYERS, share=st.floats(0, 4), enough=st.integers(0, 4000))
def test_no_more_is_lost_than_may_be(layers: list[list[Option]], share: float, enough: int) -> None:
    taken = [options[number] for options, number in zip(layers, choose(layers, share, enough), strict=True)]
    fastest = sum(options[0].cost for options in layers)
    assert sum(option.cost for option in taken) - fastest <= share * fastest + 1e-6
    # where memory is not scarce, nothing is given up
    if sum(options[0].nbytes for options in layers) <= enough:
        assert taken == [options[0] for options in layers]


@given(layers=_LAYERS, enough=st.integers(0, 4000))
def test_no_other_choice_is_faster_and_no_larger(layers: list[list[Option]], enough: int) -> None:
    """Steps along hulls, the cheapest first, end where no other choice loses less for as few bytes: Everett, 1963."""
    taken = [options[number] for options, number in zip(layers, choose(layers, 1e9, enough), strict=True)]
    cost, nbytes = (sum(column) for column in zip(*taken, strict=True))
    others = [[sum(column) for column in zip(*each, strict=True)] for each in itertools.product(*layers)]
    assert not any(other[0] < cost and other[1] <= nbytes for other in others)
    assert nbytes <= enough or nbytes == min(other[1] for other in others)
