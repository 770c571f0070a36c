"""The search for faster plans: MetaSchedule's evolutionary search, measured on the target, kept as records.

Needs the packages of `pip install 'tvm-conv3d[tuning]'`; nothing outside of this package imports it.

Never holds: design spaces, which are in `schedules/`, and what a call reads.
Entry points: `command.main`, `layer.tune`.
"""
