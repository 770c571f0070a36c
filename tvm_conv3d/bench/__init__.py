"""The benchmark: this package beside other libraries, checked before it is timed.

Each library lives in a process of its own; one layer at a time, the processes take turns, and the medians are
compared.

Never holds: numerics of its own, or a way to compute that users do not have.
Entry points: `cli.main`, `networks.command.main`.
"""
