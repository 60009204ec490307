"""Which instruction set the compiled kernels use: the widest this machine runs, or the one asked for."""

import time

from pyclattn import _config
from pyclattn.errors import BackendError


cdef extern from *:
    """
    #include "cpu.h"
    #include "tile.h"
    static const tile_isa *tile_of(int level) {
    #ifdef TILE_X86
        if (level == 2 && cpu_features() & CPU_AVX512) return &tile_avx512;
        if (level == 1 && cpu_features() & CPU_AVX2) return &tile_avx2;
    #endif
        return level == 0 ? &tile_baseline : 0;
    }
    static const tile_isa *pairs_of(const tile_isa *isa) {
    #ifdef TILE_X86
        if (isa == &tile_avx512 && cpu_features() & CPU_AVX512_BF16) return &tile_avx512_bf16;
    #endif
        return 0;
    }
    """
    const tile_isa *tile_of(int level) noexcept nogil
    const tile_isa *pairs_of(const tile_isa *isa) noexcept nogil


cdef const tile_isa *_current = NULL


cdef const tile_isa *current() noexcept nogil:
    return _current


cdef const tile_isa *bfloat16() except NULL:
    """The table whose products are of bfloat16, beside the one in use."""
    if pairs_of(_current) == NULL:
        raise BackendError(missing_bfloat16())
    return pairs_of(_current)


cdef const tile_isa *_named(str name) except NULL:
    cdef int level
    for level in range(2, -1, -1):
        if tile_of(level) != NULL and (name == "auto" or name == tile_of(level).name.decode()):
            return tile_of(level)
    raise BackendError(f"instruction set must be auto or one of {', '.join(available())} on this machine, got {name!r}")


def available():
    """Names of the instruction sets this machine runs, narrowest first."""
    return [tile_of(level).name.decode() for level in range(3) if tile_of(level) != NULL]


def selected():
    """Name of the instruction set in use."""
    return _current.name.decode()


def missing_bfloat16():
    """What keeps this process from products of bfloat16, or an empty string."""
    if pairs_of(_current) != NULL:
        return ""
    if pairs_of(tile_of(2)) != NULL:
        return f"bfloat16 products need the instruction set avx512, but {selected()} was chosen"
    return "bfloat16 products need AVX512-BF16, which this processor does not have"


def lanes():
    """Queries, or columns of a dense layer, of one panel."""
    return _current.lanes


def select(str name):
    """Use this instruction set from now on ("auto": the widest)."""
    global _current
    _current = _named(name)


def fma_peak(str name, double seconds):
    """Operations per second of the calling thread in a loop of nothing but multiply-adds.

    In float32 at an instruction set, or "bfloat16". The interpreter lock is released, so that several threads can be
    measured at once.
    """
    cdef const tile_isa *isa = bfloat16() if name == "bfloat16" else _named(name)
    cdef i64 rounds = 0, step = 1_000_000
    cdef float result = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        with nogil:
            result += isa.fma_loop(step)
        rounds += step
    elapsed = time.perf_counter() - begin
    return rounds * isa.loop_flops / elapsed + 0 * result


select(_config.isa())
