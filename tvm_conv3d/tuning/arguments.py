"""Arguments that the tuner's commands share."""

from __future__ import annotations

import argparse


def address(text: str) -> tuple[str, int]:
    """The argument HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"HOST:PORT is wanted, not {text!r}")
    return host, int(port)
