"""NVIDIA GPUs: architectures, from schedule to device code, the driver, and the call."""
