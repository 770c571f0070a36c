"""Keras's small objects in NumPy: initializers, regularizers, constraints and activations."""
