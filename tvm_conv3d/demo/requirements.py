"""The packages that the demo needs beyond the core ones."""

from __future__ import annotations

from importlib.util import find_spec

from tvm_conv3d.demo.errors import DemoError

#: Module to import -> name of the package.
MODULES = {
    "matplotlib": "matplotlib",
    "nibabel": "nibabel",
    "rich": "rich",
    "skimage": "scikit-image",
    "tensorboard": "tensorboard",
}


def check_packages() -> None:
    """Make sure that everything can be imported.

    Raises:
        DemoError: packages are missing; the text names them and the command that installs them.
    """
    missing = sorted(package for module, package in MODULES.items() if find_spec(module) is None)
    if missing:
        raise DemoError(f"The demo needs {', '.join(missing)}. Install with: pip install -e '.[demo]'")
