"""Times whole networks of PyTorch in torch's own modes and by this package: `python scripts/bench_networks.py`."""

from tvm_conv3d.bench.networks.command import main

if __name__ == "__main__":
    raise SystemExit(main())
