"""Times tvm_conv3d beside other libraries: `python scripts/bench.py --layers scripts/layers.csv --peers torch`."""

from pathlib import Path

from tvm_conv3d.bench.cli import main

if __name__ == "__main__":
    raise SystemExit(main(usual_layers=Path(__file__).with_name("layers.csv")))
