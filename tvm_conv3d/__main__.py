"""`python -m tvm_conv3d`."""

from __future__ import annotations

import sys

from tvm_conv3d.cli import main

if __name__ == "__main__":
    sys.exit(main())
