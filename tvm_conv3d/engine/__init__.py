"""From a spec to machine code: algorithms by name, plans, records, scheduling, compiling, the cache on disk.

Never holds: mathematics, loops, anything that a warm call goes through.
Entry points: `planner.make_plan`, `build.compile_plan`, `artifact.artifact_key`, `cache.load`, `algorithms.named`.
"""
