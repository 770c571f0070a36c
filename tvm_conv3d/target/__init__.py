"""What code is compiled for: traits of CPUs and GPUs, what a user's target means, and its name in records.

Never holds: drivers, plans.
Entry points: `resolve.resolve`, `resolve.traits_of`, `resolve.instruction_set`, `description.Target`, `cpu.CpuTraits`,
`gpu.GpuTraits`.
"""
