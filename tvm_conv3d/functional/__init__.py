"""The convolution as a function, which every door calls, and the arguments that all doors take.

Never holds: messages and habits of any framework.
Entry points: `convolution.conv3d`, `convolution.conv3d_transpose`, `convolution.compute`.
"""
