"""Compiled convolutions as files, for other machines or to be read.

Never holds: anything that a call needs.
Entry points: `export.export`.
"""
