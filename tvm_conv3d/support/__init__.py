"""What any room may need and none is about: folders, locks, tables with an end, names of element types.

Never holds: convolutions.
Entry points: `folders.cache_root`, `locks.ForkSafeLock`, `lru.Recent`, `dtypes.numpy_dtype`.
"""
