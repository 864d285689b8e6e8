"""Demonstrations: readers, the replay buffer in memory, windows cut from it, and batches for a policy.

Import from the modules: this file stays empty so that a robot that only needs a normaliser does not load zarr and
numba.
"""
