"""The packages; everything else stands in pyproject.toml, which cannot rename what it finds.

`schedules/` and `tuning_logs/` lie at the top level, where a person tuning a new machine looks, and are installed as
`tvm_conv3d.schedules` and `tvm_conv3d.tuning_logs`.
"""

from setuptools import find_packages, setup

PLACES = {
    "tvm_conv3d": "tvm_conv3d",
    "tvm_conv3d.schedules": "schedules",
    "tvm_conv3d.tuning_logs": "tuning_logs",
}

setup(
    packages=[
        *find_packages(include=["tvm_conv3d", "tvm_conv3d.*"]),
        *(f"tvm_conv3d.{name}" for name in find_packages(include=["schedules", "schedules.*"])),
        "tvm_conv3d.tuning_logs",
    ],
    package_dir=PLACES,
    # LLVM's text, tables of costs, and logs in sub-folders named after targets, which are no packages.
    package_data={
        "tvm_conv3d.runtime": ["*.ll"],
        "tvm_conv3d.schedules.llvm.costs": ["tables/*.json"],
        "tvm_conv3d.tuning_logs": ["**/*"],
    },
)
