"""Registers, spills, occupancy and bounds of the default GPU kernels: needs nvcc, but no GPU."""

from tvm_conv3d.diagnostics.cuda_report import main

if __name__ == "__main__":
    raise SystemExit(main())
