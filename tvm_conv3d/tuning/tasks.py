"""What is to be tuned: layers of a CSV file, spec keys, or the layers of a saved Keras model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.reference import layers, random_layers
from tvm_conv3d.spec import Conv3DSpec


@dataclass(frozen=True)
class Task:
    """A named problem."""

    name: str
    spec: Conv3DSpec


def from_csv(path: Path) -> list[Task]:
    """The layers of a file with the benchmark's columns; raises ValueError or OSError where it can't be read."""
    return [Task(layer.name, layer.spec) for layer in layers.read_csv(path)]


def from_key(key: str) -> Task:
    """The problem of a spec's key; raises ValueError where it is none."""
    return Task(key, Conv3DSpec.parse(key))


def at_random(count: int, seed: int) -> list[Task]:
    """Layers that nobody chose, by which the regret of untuned plans is told; the same for the same seed."""
    return [Task(layer.name, layer.spec) for layer in random_layers.draw(count, seed)]


def distinct(tasks: Iterable[Task]) -> list[Task]:
    """One task for each spec, under its first name."""
    found: dict[str, Task] = {}
    for task in tasks:
        found.setdefault(task.spec.key(), task)
    return list(found.values())


def from_model(path: Path, input_shape: tuple[int, ...] | None = None) -> list[Task]:
    """Every Conv3D of a saved Keras model, at the sizes that it sees when the model is called.

    Args:
        path: a `.keras` or `.h5` file.
        input_shape: of the model's input, batch included, where the model leaves sizes open; None takes batch 1.

    Raises:
        ImportError: Keras is not installed.
        ValueError: the file is no model, or its sizes are open and `input_shape` does not give them.
    """
    try:
        import keras
    except ImportError as error:
        raise ImportError("Reading a model needs Keras. Run: pip install keras, and a backend of it") from error
    model = keras.models.load_model(path, compile=False)
    shapes = _input_shapes(model, input_shape)
    seen: list[tuple[Any, tuple[int, ...]]] = []
    inputs = [keras.ops.zeros(shape) for shape in shapes]
    with _watched(keras.layers.Conv3D, seen):
        model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [Task(layer.name, spec_of(layer, shape)) for layer, shape in seen]


@contextmanager
def _watched(kind: Any, seen: list[tuple[Any, tuple[int, ...]]]) -> Iterator[None]:
    """Notes every call of a layer of this kind, with its input's shape."""
    plain, own = kind.call, "call" in vars(kind)

    def call(layer: Any, inputs: Any) -> Any:
        seen.append((layer, tuple(int(extent) for extent in inputs.shape)))
        return plain(layer, inputs)

    kind.call = call
    try:
        yield
    finally:
        if own:
            kind.call = plain
        else:
            del kind.call


def spec_of(layer: Any, shape: tuple[int, ...]) -> Conv3DSpec:
    """The problem that a Keras Conv3D poses for an input of `shape`."""
    return Conv3D.from_keras(layer).plan_for(shape).spec


def _input_shapes(model: Any, given: tuple[int, ...] | None) -> list[tuple[int, ...]]:
    shapes = []
    for tensor in model.inputs:
        shape = tuple(tensor.shape)
        if given is not None and len(given) == len(shape):
            shape = given
        shape = (shape[0] or 1, *shape[1:])
        if None in shape:
            raise ValueError(
                f"The model's input has open sizes. Received: {tuple(tensor.shape)}. "
                "Give them, batch included: --input-shape 1,64,64,64,1"
            )
        shapes.append(shape)
    return shapes
