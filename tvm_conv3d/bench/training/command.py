"""`python scripts/bench_networks.py --training`: options in, a table out."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from tvm_conv3d.bench import report
from tvm_conv3d.bench.training.results import INFERENCE, STEP, Measured, by_mode, notes, table

#: Keras's backends.
BACKENDS = ("torch", "tensorflow", "jax")

#: Networks, frameworks, and what is timed.
CASES = (
    ("basicunet", "torch", STEP),
    *(("ct", f"keras on {backend}", kind) for backend in BACKENDS for kind in (STEP, INFERENCE)),
)

#: A process that does not answer is ended after so many limits: one for each mode, and the rounds.
_LIMITS = 8


def run(options: argparse.Namespace, versions: dict[str, str]) -> int:
    """Measures all cases whose frameworks are installed; 0 if every mode of ours was right and timed.

    Args:
        options: of :func:`tvm_conv3d.bench.networks.command.parser`.
        versions: of packages, for the header.
    """
    setting = report.setting(options.threads, options.rounds, 0.0, versions)
    print("\n".join(setting.where()), flush=True)
    found = []
    for case in CASES:
        each = measured(case, options)
        if each.available:
            found.append(each)
            print("\n".join(report.aligned(table([each]), (0, 1, 2, 4, 6))[2:]), flush=True)
    for lines in (table(found), by_mode(found)):
        print("\n" + "\n".join(report.aligned(lines, (0, 1, 2))))
    print("\n".join(notes(found)))
    if options.json is not None:
        content = {"setting": asdict(setting), "found": [asdict(each) for each in found]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    failures = [line for each in found for line in each.failures()]
    for line in failures:
        print(f"Not right or not timed: {line}", file=sys.stderr)
    return 1 if failures else 0


def measured(case: Sequence[str], options: argparse.Namespace) -> Measured:
    """One network by one framework, by a process of its own."""
    network, framework, kind = case
    backend = framework.rpartition(" ")[2]
    if find_spec(backend) is None:
        return Measured(network, framework, kind, note=f"not available: no {backend}", available=False)
    common = {each: getattr(options, each) for each in ("rounds", "threads", "limit")}
    task = {"network": network, "framework": framework, "kind": kind, **common, "small": options.small}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "tvm_conv3d.bench.training.worker", json.dumps(task), str(place)]
        environment = {**os.environ, "KERAS_BACKEND": backend}
        try:
            # what libraries print is not for the table: it goes where errors go
            done = subprocess.run(command, stdout=2, timeout=_LIMITS * options.limit, check=False, env=environment)
        except subprocess.TimeoutExpired:
            return Measured(network, framework, kind, note=f"no answer within {_LIMITS * options.limit:.0f} s")
        if done.returncode:
            return Measured(network, framework, kind, note=f"its process ended with status {done.returncode}")
        return Measured.of(json.loads(place.read_text()))
