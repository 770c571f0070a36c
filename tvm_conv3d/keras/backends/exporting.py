"""Whether Keras writes a model for other programs, which must run without this package."""

from __future__ import annotations

import sys

#: Modules that do, and what they contain.
_EXPORTS = ("keras.src.export", "keras.src.backend.tensorflow.export", "tensorflow.python.saved_model.save")

REASON = "an export: what it writes must run without this package"


def is_exporting() -> bool:
    """Whether a function of one of these modules is at work in this thread; only asked while a function is traced."""
    frame = sys._getframe(1) if hasattr(sys, "_getframe") else None
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_EXPORTS):
            return True
        frame = frame.f_back
    return False
