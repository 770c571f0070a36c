"""Loops: by family of targets, each algorithm's design space, its costs and defaults, and the passes after it.

Never holds: mathematics, files, the machine at hand.
Entry points: `decisions.Decisions`, `llvm.passes.pipeline.finished`, `llvm.passes.pipeline.lowered`.
"""
