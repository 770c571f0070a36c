"""`compile`: machine code of one convolution for any target, into a folder; the target's machine is not needed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tvm_conv3d.spec import Conv3DSpec


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compile",
        help="compile one convolution for a target, which need not be this machine",
        description="Writes machine code, the readable source or assembly, the schedule as TVMScript, a description of "
        "the functions and, for a CPU, their C header.",
    )
    parser.add_argument("--spec", required=True, metavar="KEY", help="the spec's key")
    parser.add_argument(
        "--target", default="llvm", metavar="TARGET", help='llvm, cuda:sm_90, or TVM\'s as JSON; default: "%(default)s"'
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="made where it does not exist")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="that a CPU's plan is made for")
    parser.add_argument("--name", default="", metavar="NAME", help="with which a CPU's functions begin")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tvm_conv3d.deploy.export import export

    try:
        requested = json.loads(options.target) if options.target.lstrip().startswith("{") else options.target
        written = export(
            Conv3DSpec.parse(options.spec), requested, options.output, options.threads or None, options.name
        )
    except (ValueError, RuntimeError, OSError) as error:
        print(f"compile: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0
