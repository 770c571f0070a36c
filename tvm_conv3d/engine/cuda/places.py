"""Where CUDA's parts lie: toolkits, and NVIDIA's wheels."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

#: Environment variables that name the toolkit's folder.
_HOMES = ("CUDA_HOME", "CUDA_PATH")


def homes() -> Iterator[Path]:
    """Folders in which a CUDA toolkit may be installed, the requested ones first."""
    for variable in _HOMES:
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    yield Path("/usr/local/cuda")


def wheels() -> list[Path]:
    """Folders of NVIDIA's wheels, one for each place that Python imports from."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
