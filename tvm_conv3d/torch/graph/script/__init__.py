"""TorchScript: what torch.jit has compiled is run once more, function by function, where a recorder sees each.

Never holds: TorchScript that changes anything but what it made itself.
"""
