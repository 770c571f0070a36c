"""`doctor`: what is installed, what is compiled for, and whether it is right and quick."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check this installation: versions, target, cache, speed of the parts")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tvm_conv3d.diagnostics.doctor import examine

    return examine()
