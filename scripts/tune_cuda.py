"""Tunes layers for this machine's GPU: `python scripts/tune_cuda.py --layers scripts/layers.csv --time-budget 20m`."""

from tvm_conv3d.tuning.command import main

if __name__ == "__main__":
    raise SystemExit(main(kind="cuda"))
