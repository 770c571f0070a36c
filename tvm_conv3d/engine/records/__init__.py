"""Tuning records: what was measured to be the fastest plan of a spec, kept as text and found again by its key."""

from tvm_conv3d.engine.records.lookup import LOGS_VARIABLE, NO_LOGS, Found, find, packaged_logs, user_logs
from tvm_conv3d.engine.records.record import Record, RecordError
from tvm_conv3d.engine.records.store import FILE_NAME, RecordWarning, load, merge

__all__ = [
    "FILE_NAME",
    "LOGS_VARIABLE",
    "NO_LOGS",
    "Found",
    "Record",
    "RecordError",
    "RecordWarning",
    "find",
    "load",
    "merge",
    "packaged_logs",
    "user_logs",
]
