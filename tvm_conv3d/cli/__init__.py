"""The command line: each command's arguments in a module of its own, its work elsewhere.

Never holds: work of its own.
Entry points: `main`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tvm_conv3d.cli import compile, demo, doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tvm_conv3d", description="Fast 3-D convolutions.")
    commands = parser.add_subparsers(metavar="command", required=True)
    demo.add_parser(commands)
    doctor.add_parser(commands)
    compile.add_parser(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status
