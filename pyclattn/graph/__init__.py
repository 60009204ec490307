"""A converted model: a program of operators, passes that rewrite it, and an executor.

program.py    what a model is: operators, values, constants (data only)
serial.py     a program in a safetensors file
passes/       rewrites: folding, fusion, attention found by structure
spec.py       what an operator's builder sees (Node) and gives (Kernel)
ops/          the builders, by family
planner.py    program + input shapes -> plan: kernels, buffers, peak memory
executor.py   plan -> frame: arrays in one arena and calls bound to them; many callers at once
memory.py     places in the arena
arena.py      the arena's memory
blocks.py     blocks that fit in cache, shared among threads;  blas.py  BLAS held to one thread
"""
