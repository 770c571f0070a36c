"""What any room may need and none is about: folders, notes on disk, locks, tables with an end, process-wide state,
element types.

Never holds: convolutions.
Entry points: `folders.cache_root`, `notes.load`, `locks.ForkSafeLock`, `lru.Recent`, `process.keep`,
`dtypes.numpy_dtype`.
"""
