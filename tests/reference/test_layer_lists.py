"""Lists of layers: as CSV, as keys of specs, and drawn at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from small_layers import SPECS
from tvm_conv3d.reference.layers import COLUMNS, Layer, adapt, family, from_key, read_csv
from tvm_conv3d.reference.random_layers import draw
from tvm_conv3d.spec import CHANNELS_FIRST, NO_PADS, Conv3DSpec

LAYERS = Path(__file__).resolve().parents[2] / "scripts" / "layers.csv"
HEAD = ",".join(COLUMNS)
SMALL = Layer("small", SPECS[0], "same")


def test_csv_of_the_repository():
    layers = {layer.name: layer for layer in read_csv(LAYERS)}
    assert len(layers) == 39
    assert layers["r3d18_stem"].spec == Conv3DSpec.parse(
        "n1_i16x112x112x3_o64_k3x7x7_s1x2x2_d1x1x1_p1.1x2.3x2.3_g1_ndhwc_float32_bias_relu"
    )
    assert layers["dilated_d2"].spec.dilation == (2, 2, 2)
    assert layers["kerasio_ct_1"].spec.pads == NO_PADS
    assert sum(layer.dense for layer in layers.values()) == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,batch\na,1\n", "lacks the column"),
        (f"{HEAD}\na,1,8,8,8,4,4,3x3,1x1x1,1x1x1,1,same\n", "line 2: Three numbers"),
        (f"{HEAD}\na,1,8,8,8,4,4,3x3x3,1x1x1,1x1x1,1,causal\n", "`padding` must be"),
        (f"{HEAD}\na,1,8,8,8,4,4,3x3x3,1x1x1,1x1x1,3,same\n", "divisible by `groups`"),
        (f"{HEAD}\na,x,8,8,8,4,4,3x3x3,1x1x1,1x1x1,1,same\n", "line 2"),
    ],
)
def test_csv_errors_say_where(tmp_path, text, message):
    path = tmp_path / "layers.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(path)


@pytest.mark.parametrize("spec", SPECS, ids=Conv3DSpec.key)
def test_key_round_trip(spec):
    layer = from_key(spec.key())
    assert layer.spec == spec
    assert layer.padding == ("valid" if spec.pads == NO_PADS else "same")


def test_key_of_what_cannot_be_compared():
    with pytest.raises(ValueError, match="neither Keras's"):
        from_key(replace(SPECS[0], pads=((3, 0), (0, 0), (0, 0))).key())
    with pytest.raises(ValueError, match="linear and relu only"):
        from_key(replace(SPECS[0], post_ops=("gelu",)).key())


def test_families_of_the_repository():
    families = {layer.name: family(layer.spec) for layer in read_csv(LAYERS)}
    expected = {
        "ansor_c3d_1": "pointwise",
        "ansor_c3d_0": "stem",
        "r21d18_l1_s": "spatial",
        "r21d18_l1_t": "temporal",
        "slowfast_lateral": "temporal",
        "x3dm_dw_54": "depthwise",
        "resnext3d_g32_a": "grouped",
        "unetr_patch16": "patchify",
        "r3d18_l2_down": "strided",
        "dilated_d2": "dilated",
        "cosmoflow_3": "k2",
        "vnet_5x5x5_64": "k5",
        "voxnet_2": "tiny",
        "nnunet_s2": "dense3",
    }
    assert {name: families[name] for name in expected} == expected


def test_adapt_changes_only_what_is_asked():
    layers = [SMALL]
    assert adapt(layers, None, None) == layers
    changed = adapt(layers, "float16", CHANNELS_FIRST)[0].spec
    assert (changed.dtype, changed.data_format) == ("float16", CHANNELS_FIRST)
    assert replace(changed, dtype="float32", data_format=SMALL.spec.data_format) == SMALL.spec


def test_random_layers_repeat_and_differ():
    first, again, other = draw(40, 1), draw(40, 1), draw(40, 2)
    assert first == again
    assert {layer.spec for layer in first} != {layer.spec for layer in other}
    assert len({layer.family for layer in first}) >= 6
    for layer in first:
        assert from_key(layer.spec.key()).spec == layer.spec
