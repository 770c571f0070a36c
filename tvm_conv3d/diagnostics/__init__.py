"""Reports on an installation, and on the GPU kernels that it compiles.

Never holds: mends of what they find.
Entry points: `doctor.examine`, `cuda_report.main`.
"""
