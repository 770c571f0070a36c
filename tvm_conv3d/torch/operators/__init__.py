"""Operators of whole networks beside the convolution, each registered with torch: one module for each."""
