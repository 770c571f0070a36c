"""What is changed in a scheduled function before TVM compiles it: loads, stores and loops that no schedule expresses."""
