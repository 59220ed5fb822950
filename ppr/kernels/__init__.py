"""Compiled kernels: arrays in, arrays filled. They import numpy and numba only and never raise."""
