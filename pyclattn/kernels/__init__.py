"""Numba kernels: clustering on codes, sorting, and the joining of partial softmaxes.

Same names and arguments as `pyclattn.reference`. They touch only arrays the library made itself (contiguous, of known
types), so each has one eager signature and is compiled once, when this package is first imported, and cached.
"""
