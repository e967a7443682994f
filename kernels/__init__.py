"""Triton kernels, each file with its reference and its benchmark; installed as `rar_mini.kernels`."""
