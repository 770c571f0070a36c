"""Steps of training, and Keras's CT network in inference: this package beside each framework's own modes.

Each network and framework has a process of its own, where all modes take turns; gradients are compared before.
"""
