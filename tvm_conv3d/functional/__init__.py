"""The convolution, and what networks need beside it, as functions that every door calls, and the arguments they take.

Never holds: messages and habits of any framework.
Entry points: `convolution.conv3d`, `convolution.conv3d_transpose`, `convolution.compute`,
`gradients.conv3d_data_gradient`, `gradients.conv3d_weight_gradient`.
"""
