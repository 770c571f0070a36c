"""Mathematics: for each algorithm one declaration in TE, its packing of weights and its error bound.

Never holds: schedule primitives, cost models.
Entry points: `shared.canonical.canonicalize`, `shared.declaration.Declaration`, `shared.packing.module`.
"""
