"""The demonstration: a pretrained network that extracts the brain of a head MRI.

Never holds: convolutions of its own.
Entry points: `command.run`.
"""
