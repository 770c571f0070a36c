"""The call: machine code loaded, weights packed and kept, threads, memory, arrays of all libraries, GPUs.

Never holds: which plan is taken, how it is compiled.
Entry points: `executor.Executor`, `loader.get_loaded`, `interchange.wrap`, `threads.run`.
"""
