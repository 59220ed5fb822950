"""Compiled kernels: arrays in, arrays filled. They import numpy and numba only, validate nothing and never raise."""
