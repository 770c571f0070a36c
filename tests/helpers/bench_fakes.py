"""Libraries for the benchmark's tests, loaded by its workers as `bench_fakes:Wrong` and so on."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from tvm_conv3d.bench.peers import Prepared
from tvm_conv3d.bench.peers.oracle import Oracle


class Wrong:
    """Answers everything with ones."""

    def __init__(self, threads):
        pass

    def versions(self):
        return {"wrong": "1"}

    def modes(self, spec):
        return ["ones"]

    def prepare(self, spec, mode, x, kernel, bias):
        return Prepared(lambda: np.ones(spec.output_shape), np.asarray)


class NotANumber(Wrong):
    def prepare(self, spec, mode, x, kernel, bias):
        return Prepared(lambda: np.full(spec.output_shape, np.nan), np.asarray)


class HalfRight(Wrong):
    """One mode right, one wrong, one impossible."""

    def modes(self, spec):
        return ["right", "wrong", "impossible"]

    def prepare(self, spec, mode, x, kernel, bias):
        if mode == "impossible":
            raise ValueError("no such instruction")
        return (Oracle(1) if mode == "right" else Wrong(1)).prepare(spec, mode, x, kernel, bias)


class Missing(Wrong):
    def __init__(self, threads):
        raise ImportError("No module named 'missing'")


class Crashing(Wrong):
    def prepare(self, spec, mode, x, kernel, bias):
        print("on my way out", file=sys.stderr, flush=True)
        os._exit(7)


class Noisy(Wrong):
    """Prints where the answers would go."""

    def prepare(self, spec, mode, x, kernel, bias):
        print("a line on standard output", flush=True)
        os.write(1, b"and one below Python\n")
        return Oracle(1).prepare(spec, mode, x, kernel, bias)


class Asleep(Wrong):
    def prepare(self, spec, mode, x, kernel, bias):
        time.sleep(60)
