"""What any room may need and none is about: folders, notes, locks, tables with an end, process-wide state, types.

Never holds: convolutions.
Entry points: `folders.cache_root`, `notes.load`, `locks.ForkSafeLock`, `lru.Recent`, `process.keep`,
`dtypes.numpy_dtype`.
"""
