"""The judge: a float64 convolution in NumPy, its test data and tolerances, and lists of layers.

Never holds: code that it shares with the kernels.
Entry points: `oracle.convolve`, `problem.Problem`, `layers.read_csv`.
"""
