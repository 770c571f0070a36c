"""What is changed in a scheduled function before TVM compiles it: loads, stores, loops that no schedule expresses."""
