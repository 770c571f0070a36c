"""`Conv3D` with Keras's arguments, weights, losses and config, and Keras's small objects in NumPy.

Never holds: shape arithmetic of the convolution, TVM, Keras itself.
Entry points: `conv3d.Conv3D`.
"""
