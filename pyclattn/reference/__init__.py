"""The meaning of every kernel, in plain NumPy: complete, slow, and the fallback where nothing faster is installed.

Sums and softmaxes are taken in float64 here, so that a fast kernel can be measured against them. The calling
convention (spans, tasks, counter) stands in `pyclattn.arrays`.
"""
