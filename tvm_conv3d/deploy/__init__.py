"""Compiled convolutions as files, for other machines, for programs without Python, or to be read.

Never holds: anything that a call needs.
Entry points: `export.export`.
"""
