"""The constructor's checks, their order and their messages: rules 1 to 12 of Keras's behaviour."""

from __future__ import annotations

import json
import re
import sys
import threading
import warnings

import numpy as np
import pytest

from tvm_conv3d.layer import dtype_policy, keras_config
from tvm_conv3d.layer.conv3d import Conv3D, Convolution3D
from tvm_conv3d.layer.naming import snake_case
from tvm_conv3d.support import dtypes

KERNEL_TEXT = "The `kernel_size` argument must be a tuple of 3 integers. Received kernel_size="

#: Rule, arguments, error, message.
RULES = [
    (1, {"foo": 1}, ValueError, "Unrecognized keyword arguments passed to Conv3D: {'foo': 1}"),
    (1, {"foo": 1, "bar": 2}, ValueError, "Unrecognized keyword arguments passed to Conv3D: {'foo': 1, 'bar': 2}"),
    (
        2,
        {"name": "a/b"},
        ValueError,
        "Argument `name` must be a string and cannot contain character `/`. Received: name=a/b (of type <class 'str'>)",
    ),
    (
        2,
        {"name": 3},
        ValueError,
        "Argument `name` must be a string and cannot contain character `/`. Received: name=3 (of type <class 'int'>)",
    ),
    (
        3,
        {"trainable": 1},
        ValueError,
        "Expected `trainable` to be a boolean. Received: trainable=1 (of type <class 'int'>)",
    ),
    (4, {"kernel_size": (3, 3)}, ValueError, KERNEL_TEXT + "(3, 3)"),
    (4, {"kernel_size": None}, ValueError, KERNEL_TEXT + "None"),
    (4, {"kernel_size": 2.0}, ValueError, KERNEL_TEXT + "2.0"),
    (4, {"kernel_size": np.int64(2)}, ValueError, KERNEL_TEXT + "2"),
    (
        4,
        {"kernel_size": (1, None, 2)},
        ValueError,
        KERNEL_TEXT + "(1, None, 2)including element None of type <class 'NoneType'>",
    ),
    (4, {"kernel_size": "abc"}, ValueError, KERNEL_TEXT + "abcincluding element a of type <class 'str'>"),
    (
        4,
        {"strides": "ab"},
        ValueError,
        "The `strides` argument must be a tuple of 3 integers. Received strides=ab",
    ),
    (
        4,
        {"dilation_rate": (1, 1)},
        ValueError,
        "The `dilation_rate` argument must be a tuple of 3 integers. Received dilation_rate=(1, 1)",
    ),
    (
        5,
        {"strides": (1, 0, 1)},
        ValueError,
        "The `strides` argument must be a tuple of 3 integers. Received strides=(1, 0, 1), "
        "including values {0} that do not satisfy `value > 0`",
    ),
    (
        5,
        {"kernel_size": -1},
        ValueError,
        KERNEL_TEXT + "-1, including values {-1} that do not satisfy `value > 0`",
    ),
    (
        6,
        {"padding": "causal"},
        ValueError,
        "The `padding` argument must be a list/tuple or one of {'same', 'valid'}. Received: causal",
    ),
    (6, {"padding": None}, AttributeError, "'NoneType' object has no attribute 'lower'"),
    (
        7,
        {"data_format": "ndhwc"},
        ValueError,
        "The `data_format` argument must be one of {'channels_first', 'channels_last'}. Received: data_format=ndhwc",
    ),
    (8, {"activation": "nope"}, ValueError, "Could not interpret activation function identifier: nope"),
    (8, {"kernel_initializer": "nope"}, ValueError, "Could not interpret initializer identifier: nope"),
    (8, {"bias_initializer": 3}, ValueError, "Could not interpret initializer identifier: 3"),
    (8, {"kernel_regularizer": "nope"}, ValueError, "Could not interpret regularizer identifier: nope"),
    (8, {"bias_regularizer": "nope"}, ValueError, "Could not interpret regularizer identifier: nope"),
    (8, {"activity_regularizer": "nope"}, ValueError, "Could not interpret regularizer identifier: nope"),
    (8, {"kernel_constraint": "nope"}, ValueError, "Could not interpret constraint identifier: nope"),
    (8, {"bias_constraint": "nope"}, ValueError, "Could not interpret constraint identifier: nope"),
    (
        9,
        {"filters": 0},
        ValueError,
        "Invalid value for argument `filters`. Expected a strictly positive value. Received filters=0.",
    ),
    (10, {"groups": 0}, ValueError, "The number of groups must be a positive integer. Received: groups=0."),
    (
        11,
        {"groups": 2, "filters": 5},
        ValueError,
        "The number of filters must be evenly divisible by the number of groups. Received: groups=2, filters=5.",
    ),
    (
        11,
        {"filters": 2.5},
        ValueError,
        "The number of filters must be evenly divisible by the number of groups. Received: groups=1, filters=2.5.",
    ),
    (
        12,
        {"strides": (1, 2, 1), "dilation_rate": (2, 1, 1)},
        ValueError,
        "`strides > 1` not supported in conjunction with `dilation_rate > 1`. "
        "Received: strides=(1, 2, 1) and dilation_rate=(2, 1, 1)",
    ),
]


def make(**arguments: object) -> Conv3D:
    return Conv3D(**{"filters": 4, "kernel_size": 3, **arguments})


@pytest.mark.parametrize(("rule", "arguments", "error", "message"), RULES)
def test_each_rule_raises_its_message(rule, arguments, error, message):
    with pytest.raises(error) as caught:
        make(**arguments)
    assert str(caught.value) == message


#: One wrong argument each, in the order in which they are refused.
ORDER = [
    ({"name": "a/b"}, "`name`"),
    ({"dtype": "nope"}, "DTypePolicy"),
    ({"activity_regularizer": "zip"}, "regularizer identifier: zip"),
    ({"foo": 1}, "Unrecognized"),
    ({"trainable": 1}, "`trainable`"),
    ({"kernel_size": 0}, "`kernel_size`"),
    ({"strides": 0}, "`strides`"),
    ({"dilation_rate": 0}, "`dilation_rate`"),
    ({"padding": "causal"}, "`padding`"),
    ({"data_format": "ndhwc"}, "`data_format`"),
    ({"activation": "nope"}, "activation function identifier"),
    ({"kernel_initializer": "ki"}, "initializer identifier: ki"),
    ({"bias_initializer": "bi"}, "initializer identifier: bi"),
    ({"kernel_regularizer": "kr"}, "regularizer identifier: kr"),
    ({"bias_regularizer": "br"}, "regularizer identifier: br"),
    ({"kernel_constraint": "kc"}, "constraint identifier: kc"),
    ({"bias_constraint": "bc"}, "constraint identifier: bc"),
    ({"filters": -1}, "`filters`"),
    ({"groups": -1}, "number of groups"),
]


def test_the_first_failing_rule_wins():
    for position, (_, text) in enumerate(ORDER):
        wrong: dict[str, object] = {}
        for arguments, _ in ORDER[position:]:
            wrong |= arguments
        with pytest.raises(ValueError, match=re.escape(text)):
            make(**wrong)


def test_unknown_keyword_names_the_subclass():
    class Mine(Conv3D):
        pass

    with pytest.raises(ValueError, match=r"passed to Mine: \{'foo': 1\}"):
        Mine(4, 3, foo=1)


def test_missing_arguments_are_a_type_error():
    with pytest.raises(TypeError, match="'filters' and 'kernel_size'"):
        Conv3D()


def test_corner_values_that_pass():
    assert make(kernel_size=True).kernel_size == (True, True, True)
    kept = make(kernel_size=(np.int64(2),) * 3).kernel_size
    assert kept == (2, 2, 2)
    assert all(isinstance(value, np.int64) for value in kept)
    assert make(kernel_size=(2.0, 2.0, 2.0)).kernel_size == (2.0, 2.0, 2.0)
    assert make(kernel_size=[3, 2, 1]).kernel_size == (3, 2, 1)
    assert make(filters=4.0).filters == 4.0
    assert make(filters=None).filters is None
    assert make(padding=[1, 1, 1]).padding == [1, 1, 1]
    assert make(use_bias=None).use_bias is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"filters": 4.0},
            "Cannot convert '(3, 3, 3, 4, 4.0)' to a shape. Found invalid dimension '4.0' of type '<class 'float'>'. ",
        ),
        (
            {"kernel_size": (2.0, 2.0, 2.0)},
            "Cannot convert '(2.0, 2.0, 2.0, 4, 4)' to a shape. "
            "Found invalid dimension '2.0' of type '<class 'float'>'. ",
        ),
        (
            {"filters": None, "name": "c"},
            "Shapes used to initialize variables must be fully-defined (no `None` dimensions). "
            "Received: shape=(3, 3, 3, 4, None) for variable path='c/kernel'",
        ),
        ({"padding": [1, 1, 1]}, "`padding` must be either `'valid'` or `'same'`. Received [1, 1, 1]."),
        ({"strides": (1.5, 1, 1)}, "`strides` must be integers. Received: strides=(1.5, 1, 1)"),
    ],
)
def test_corner_values_that_fail_at_build(arguments, message):
    layer = make(**arguments)
    with pytest.raises(ValueError) as caught:
        layer.build((None, 5, 5, 5, 4))
    assert str(caught.value) == message
    assert not layer.built
    assert layer.weights == []


def test_stored_forms():
    layer = make(padding="SAME", data_format="Channels_First", strides=2, activation=None)
    assert layer.padding == "same"
    assert layer.data_format == "channels_first"
    assert layer.strides == (2, 2, 2)
    assert layer.activation.__name__ == "linear"
    assert Convolution3D is Conv3D


def test_input_shape_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="Do not pass an `input_shape`/`input_dim` argument to a layer"):
        make(input_shape=(3, 3, 3, 1))
    with pytest.warns(UserWarning, match="Do not pass an `input_shape`/`input_dim` argument to a layer"):
        make(input_dim=3)


def test_snake_case_of_classes():
    names = {"Conv3D": "conv3d", "MyConv3D": "my_conv3d", "GlorotUniform": "glorot_uniform", "L1L2": "l1l2"}
    assert {name: snake_case(name) for name in names} == names
    assert snake_case("STFTInitializer") == "stft_initializer"


def test_automatic_names_are_numbered_and_unique_over_threads():
    class Numbered(Conv3D):
        pass

    assert Numbered(1, 1).name == "numbered"
    assert Numbered(1, 1).name == "numbered_1"
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.extend(Numbered(1, 1).name for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 200


# dtype policies


@pytest.mark.parametrize(
    ("identifier", "compute", "variable"),
    [
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
        ("float16", "float16", "float16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        (np.float64, "float64", "float64"),
        (np.dtype("float16"), "float16", "float16"),
        (dtypes.numpy_dtype("bfloat16"), "bfloat16", "bfloat16"),
        (float, "float32", "float32"),
        (dtype_policy.DTypePolicy("mixed_float16"), "float16", "float32"),
        ({"class_name": "DTypePolicy", "config": {"name": "float16"}}, "float16", "float16"),
        (
            {
                "module": "keras",
                "class_name": "DTypePolicy",
                "config": {"name": "mixed_bfloat16"},
                "registered_name": None,
            },
            "bfloat16",
            "float32",
        ),
    ],
)
def test_dtype_policies(identifier, compute, variable):
    layer = make(dtype=identifier)
    assert (layer.compute_dtype, layer.variable_dtype, layer.dtype) == (compute, variable, variable)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("nope", "Cannot convert 'nope' to a mixed precision DTypePolicy."),
        ("int32", "Cannot convert 'int32' to a mixed precision DTypePolicy."),
        (3, "Cannot interpret `dtype` argument."),
        (np.int32, "Cannot interpret `dtype` argument."),
        ({"config": {}}, "Unknown `config` as a `dict`"),
        ({"class_name": "QuantizedDTypePolicy", "config": {}}, "Only plain and mixed dtype policies are supported."),
    ],
)
def test_dtypes_that_are_refused(identifier, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(dtype=identifier)


def test_dtypes_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert make(dtype=torch.bfloat16).dtype == "bfloat16"


def test_policy_repr_and_setting_it():
    layer = make(dtype="float32")
    layer.dtype_policy = "mixed_float16"
    assert repr(layer.dtype_policy) == '<DTypePolicy "mixed_float16">'
    assert layer.compute_dtype == "float16"
    with pytest.raises(TypeError, match="'name' must be a string"):
        dtype_policy.DTypePolicy(3)


# keras.json


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """A settings folder of our own, in a process that seems not to have loaded Keras."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def write(home, content):
    (home / "keras.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_settings_without_a_file(keras_home):
    layer = make()
    assert (layer.data_format, layer.dtype) == ("channels_last", "float32")


def test_settings_are_read_at_construction(keras_home):
    before = make()
    write(keras_home, {"image_data_format": "channels_first", "floatx": "float16"})
    after = make()
    assert (before.data_format, before.dtype) == ("channels_last", "float32")
    assert (after.data_format, after.dtype) == ("channels_first", "float16")
    assert after.get_config()["data_format"] == "channels_first"


@pytest.mark.parametrize("content", ["{ not json", "[]", '{"image_data_format": "ndhwc"}', "\udcff"])
def test_a_damaged_settings_file_warns(keras_home, content):
    (keras_home / "keras.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.warns(RuntimeWarning, match=r"keras\.json"):
        assert keras_config.image_data_format() == "channels_last"


def test_settings_path(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keras_config.config_path() == tmp_path / ".keras" / "keras.json"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert str(keras_config.config_path()) == "/tmp/.keras/keras.json"


def test_no_warning_in_the_ordinary_case(keras_home):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()
