"""nnU-Net's own predictor with its network accelerated, beside it as it is: `python scripts/check_nnunet.py`.

Needs nnunetv2 (2.8). Weights are random. The whole of `nnUNetPredictor.predict_single_npy_array` runs on a volume like
a head, or on the demonstration's scan (`--head`): preprocessing, sliding window, resampling, segmentation. Nothing but
`predictor.network` is replaced. Prints the times of both, their ratio and the part of voxels that agree; exits with 1
where fewer than 99.99 % do.
"""

from __future__ import annotations

import argparse
import gzip
import time
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tvm_conv3d.demo import assets
from tvm_conv3d.target.cpu import available_cpus
from tvm_conv3d.torch import accelerate, counters

#: The least part of voxels that get the same label.
AGREEMENT = 0.9999

LABELS = {"background": 0, "first": 1, "second": 2}

#: What the planner writes for full resolution in 3-D; resampling is nnU-Net's usual one.
STAGES = 6
NETWORKS = {
    "PlainConvUNet": {"n_conv_per_stage": [2] * STAGES},
    "ResidualEncoderUNet": {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6]},
}


def plans(network: str, patch: int, features: int) -> dict[str, Any]:
    """A plans file with one configuration."""
    arguments = {
        "n_stages": STAGES,
        "features_per_stage": [min(features << stage, 10 * features) for stage in range(STAGES)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * STAGES,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (STAGES - 1)],
        "n_conv_per_stage_decoder": [1 if network.startswith("Residual") else 2] * (STAGES - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **NETWORKS[network],
    }
    resampling: dict[str, Any] = {}
    for what, orders in (("data", (3, 0)), ("seg", (1, 0)), ("probabilities", (1, 0))):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        kwargs = {"is_seg": what == "seg", "order": orders[0], "order_z": orders[1], "force_separate_z": None}
        resampling[f"resampling_fn_{what}_kwargs"] = kwargs
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [patch] * 3,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset001_Check",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


def predictor_of(network: str, patch: int, features: int, mirroring: bool) -> Any:
    """nnU-Net's predictor with random weights."""
    torch.manual_seed(0)
    manager = PlansManager(plans(network, patch, features))
    configuration = manager.get_configuration("3d_fullres")
    module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        input_channels=1,
        output_channels=len(LABELS),
        deep_supervision=False,
    )
    dataset = {"channel_names": {"0": "T1"}, "labels": LABELS, "numTraining": 1, "file_ending": ".nii.gz"}
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    parameters = [module.state_dict()]
    axes = (0, 1, 2) if mirroring else None
    predictor.manual_initialization(module, manager, configuration, parameters, dataset, "nnUNetTrainer", axes)
    return predictor


def head_like(edge: int) -> np.ndarray:
    """Shells of ellipsoids with noise in air, (1, edge, edge, edge)."""
    axes = np.meshgrid(*[np.linspace(-1, 1, edge, dtype=np.float32)] * 3, indexing="ij", sparse=True)
    radius = np.sqrt((axes[0] / 0.9) ** 2 + (axes[1] / 0.75) ** 2 + (axes[2] / 0.7) ** 2)
    tissue = np.select([radius > 1, radius > 0.92, radius > 0.85], [0.0, 700.0, 150.0], 500.0)
    ripples = 60 * np.sin(17 * axes[0]) * np.sin(13 * axes[1]) * np.sin(11 * axes[2])
    noise = np.random.default_rng(0).normal(0, 20, tissue.shape)
    return np.where(radius > 1, 0, tissue + ripples + noise).astype(np.float32)[None]


def head() -> tuple[np.ndarray, list[float]]:
    """The demonstration's scan in nnU-Net's order of axes, and its spacing in mm."""
    import nibabel

    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(assets.read(assets.SCAN)))
    spacing = [float(step) for step in image.header.get_zooms()[2::-1]]
    return np.asarray(image.dataobj, np.float32).reshape(image.shape[:3]).transpose(2, 1, 0)[None], spacing


def main() -> int:
    """Predicts twice; 0 where both agree."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--network", choices=NETWORKS, default="PlainConvUNet")
    options.add_argument("--edge", type=int, default=160, help="of the volume like a head, in voxels of 1 mm")
    options.add_argument("--head", action="store_true", help="the demonstration's scan instead, resampled to 1 mm")
    options.add_argument(
        "--patch", type=int, default=96, help="edge of the sliding window; a multiple of 32, 64 or more"
    )
    options.add_argument("--features", type=int, default=32, help="channels of the first stage")
    options.add_argument("--mirroring", action="store_true", help="with nnU-Net's test-time augmentation")
    given = options.parse_args()
    torch.set_num_threads(available_cpus())
    image, spacing = head() if given.head else (head_like(given.edge), [1.0] * 3)
    predictor = predictor_of(given.network, given.patch, given.features, given.mirroring)
    original, fast = predictor.network, accelerate(predictor.network)
    print(f"{given.network}, volume {image.shape[1:]} of {spacing} mm; {str(fast.report).splitlines()[0]}", flush=True)
    patch = torch.randn(1, 1, *[given.patch] * 3)
    seconds, found = {}, {}
    for name, network in (("torch", original), ("tvm_conv3d", fast)):
        predictor.network = network.eval()
        with torch.inference_mode():
            for _ in range(3):  # what is compiled, and memory that is kept, is not counted
                predictor.network(patch)
        before = time.perf_counter()
        found[name] = predictor.predict_single_npy_array(image, {"spacing": spacing})
        seconds[name] = time.perf_counter() - before
        labels = {label: int((found[name] == number).sum()) for label, number in LABELS.items()}
        print(f"{name}: {seconds[name]:.1f} s, voxels {labels}", flush=True)
    agreement = float((found["torch"] == found["tvm_conv3d"]).mean())
    print(
        f"torch's time / ours {seconds['torch'] / seconds['tvm_conv3d']:.2f}, {100 * agreement:.4f} % of voxels agree"
    )
    print(fast.report, counters(), sep="\n")
    return 0 if agreement >= AGREEMENT else 1


if __name__ == "__main__":
    raise SystemExit(main())
