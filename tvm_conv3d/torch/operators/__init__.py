"""Operators that are registered with torch, and their kernels: what modules and rewritten graphs call."""
