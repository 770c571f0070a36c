"""Whole networks: this package's ways to run a module of PyTorch beside PyTorch's own, checked before they are timed.

Each network lives in a process of its own with all its modes, which take turns; nothing is set in the environment.
"""
