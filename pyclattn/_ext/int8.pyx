"""Dense layers on 8-bit whole numbers: rows are quantised as they are read, sums are exact (int8.h)."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, strcmp

from pyclattn._ext.dense cimport Target, deal_heads, deliver, expect, kind_of, tallest, target_of
from pyclattn._ext.isa cimport current, draw_task, free_floats, i64, new_floats, tile_isa

from pyclattn import _config
from pyclattn.errors import BackendError

# Rows of one call of the tile: 32 x 48 sums are 6 kB, and stay in L1 until they are written out.
cdef enum:
    BLOCK = 32
    LEVELS = 5


cdef extern from *:
    """
    #include "cpu.h"
    #include "int8.h"
    /* narrowest first */
    static const int8_isa *int8_of(int level) {
    #ifdef TILE_X86
        int found = cpu_features();
        if (level == 4 && found & CPU_AVX512_VNNI) return &int8_avx512vnni;
        if (level == 3 && found & CPU_AVX512) return &int8_avx512;
        if (level == 2 && found & CPU_AVXVNNI) return &int8_avxvnni;
        if (level == 1 && found & CPU_AVX2) return &int8_avx2;
    #endif
        return level == 0 ? &int8_baseline : 0;
    }
    """
    ctypedef struct int8_isa:
        const char *name
        const char *tile
        i64 lanes
        void (*quantise)(const float *, i64, uint8_t *, float *) noexcept nogil
        void (*sum)(const uint8_t *, i64, i64, i64, const int8_t *, int32_t *) noexcept nogil
        void (*multiply)(const uint8_t *, i64, i64, i64, const int8_t *, const int32_t *, const float *,
                         const float *, float *) noexcept nogil

    const int8_isa *int8_of(int level) noexcept nogil


def available():
    """Names of the int8 instruction sets this machine runs, narrowest first."""
    return [int8_of(level).name.decode() for level in range(LEVELS) if int8_of(level) != NULL]


cdef str _asked = ""


def select(str name):
    """Use this set where the tile's panels are its own ("auto": the best for the tile in use)."""
    global _asked
    if name != "auto" and name not in available():
        raise BackendError(f"int8 instruction set must be auto or one of {', '.join(available())} on this machine, "
                           f"got {name!r}")
    _asked = "" if name == "auto" else name


def asked():
    """The name last given to `select`."""
    return _asked or "auto"


def selected():
    """Name of the int8 instruction set in use."""
    return _current().name.decode()


cdef const int8_isa *_current() except NULL:
    """The best set with the panels of the float32 tile in use, or the one asked for."""
    cdef int level
    cdef const int8_isa *found
    for level in range(LEVELS - 1, -1, -1):
        found = int8_of(level)
        if found != NULL and strcmp(found.tile, current().name) == 0 and (not _asked or found.name.decode() == _asked):
            return found
    raise BackendError(f"int8 instructions {_asked} were asked for, but tiles are {current().name.decode()}: "
                       f"PYCLATTN_ISA and PYCLATTN_INT8_ISA must go together")


cdef const int8_isa *_fitting(const int8_t[:, :, :, ::1] panels) except NULL:
    """The set in use, if these panels are its own."""
    cdef const int8_isa *isa = _current()
    if isa.lanes != panels.shape[2] or panels.shape[3] != 4 or (panels.shape[1] and <size_t>&panels[0, 0, 0, 0] % 64):
        raise BackendError(f"the weight must be aligned and packed for {isa.name.decode()}, in panels of {isa.lanes} "
                           f"columns, got panels of {panels.shape[2]}: pack it again")
    return isa


def multiply(
    const float[:, :] rows, const int8_t[:, :, :, ::1] panels, const int32_t[::1] offsets, const float[::1] scales,
    const float[::1] bias, str activation, const float[:, :] residual, const int64_t[:, ::1] tasks,
    float[:, :, :, :] out, int64_t[::1] counter,
):
    """out = activation(rows @ weight + bias) + residual (see `pyclattn.reference.int8`)."""
    cdef:
        const tile_isa *tile = current()
        const int8_isa *isa = _fitting(panels)
        const float *shift = NULL
        const float *own_shift = NULL
        const float *added = NULL
        const float *own_added = NULL
        int kind = kind_of(activation, True)
        Target t = target_of(out)
        bint is_direct = t.n_heads == 1 or t.head_dim % tile.vector == 0
        i64 depth = rows.shape[1], width = t.n_heads * t.head_dim, lanes = isa.lanes, n_groups = panels.shape[1]
        i64 stride = (depth + 63) // 64 * 64, height = tallest(tasks), first = -1, added_stride = 0
        i64 task, panel, row, start, stop, n, column, columns
        uint8_t *codes
        float *row_scales
        float *s

    if bias is not None:
        shift = &bias[0]
    if residual is not None:
        added, added_stride = &residual[0, 0], residual.strides[0] // 4
    s = new_floats(BLOCK * lanes + height + height * stride // 4)
    if s == NULL:
        raise MemoryError("no memory for one block of a product")
    codes = <uint8_t *>(s + BLOCK * lanes)
    row_scales = s + BLOCK * lanes + height * stride // 4
    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            start, stop = tasks[task, 0], tasks[task, 1]
            if start != first:  # tasks of the same rows share their codes
                first = start
                for row in range(start, stop):
                    isa.quantise(&rows[row, 0], depth, codes + (row - start) * stride, row_scales + row - start)
            for panel in range(tasks[task, 2], tasks[task, 3]):
                column = panel * lanes
                columns = min(lanes, width - column)
                if shift != NULL:
                    own_shift = shift + column
                row = start
                while row < stop:
                    n = min(BLOCK, stop - row)
                    expect(&t, row, n, column, columns)
                    isa.multiply(codes + (row - start) * stride, stride, n, n_groups, &panels[panel, 0, 0, 0],
                                 &offsets[column], &scales[column], row_scales + row - start, s)
                    if added != NULL:
                        own_added = added + row * added_stride + column
                    if is_direct:
                        deliver(tile.finish, s, lanes, n, column, columns, row, own_shift, kind, own_added,
                                added_stride, &t)
                    else:
                        tile.finish(s, n, columns, own_shift, kind, own_added, added_stride, s, lanes)
                        deal_heads(s, lanes, n, column, columns, row, &t)
                    row += n
    free_floats(s)


def sum_products(
    const uint8_t[:, :] rows, const int8_t[:, :, :, ::1] panels, const int64_t[:, ::1] tasks, int32_t[:, :] out,
    int64_t[::1] counter,
):
    """out = rows @ weight in whole numbers (see `pyclattn.reference.int8`)."""
    cdef:
        const int8_isa *isa = _fitting(panels)
        i64 depth = rows.shape[1], width = out.shape[1], lanes = isa.lanes, n_groups = panels.shape[1]
        i64 stride = (depth + 63) // 64 * 64, height = tallest(tasks), first = -1
        i64 task, panel, row, start, stop, n, k, columns
        uint8_t *codes
        int32_t *s
        float *scratch = new_floats(BLOCK * lanes + height * stride // 4)

    if scratch == NULL:
        raise MemoryError("no memory for one block of a product")
    s = <int32_t *>scratch
    codes = <uint8_t *>(scratch + BLOCK * lanes)
    with nogil:
        while True:
            task = draw_task(&counter[0])
            if task >= tasks.shape[0]:
                break
            start, stop = tasks[task, 0], tasks[task, 1]
            if start != first:
                first = start
                for row in range(start, stop):  # whole groups may be read: what lies behind a row is no one else's
                    memcpy(codes + (row - start) * stride, &rows[row, 0], depth)
            for panel in range(tasks[task, 2], tasks[task, 3]):
                columns = min(lanes, width - panel * lanes)
                row = start
                while row < stop:
                    n = min(BLOCK, stop - row)
                    isa.sum(codes + (row - start) * stride, stride, n, n_groups, &panels[panel, 0, 0, 0], s)
                    for k in range(n):
                        memcpy(&out[row + k, panel * lanes], s + k * lanes, columns * 4)
                    row += n
    free_floats(scratch)


select(_config.int8_isa())
