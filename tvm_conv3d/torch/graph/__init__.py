"""Graphs of the torch functions that a module calls: recorded, rewritten to this package's operators, replayed.

Never holds: kernels, arithmetic of convolutions.
"""
