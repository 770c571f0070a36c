"""Families of targets: a module each, which joins its algorithms and imports TVM."""
