"""What one thread of `tails.attend` holds; `functional.coclustered.working_bytes` counts it."""

from libc.stdint cimport int32_t, int64_t

from pyclattn._ext.isa cimport (
    TILE_KEYS, current, free_floats, i64, new_floats, padded, tile_isa, tile_lists,
)
from pyclattn._ext.wanted cimport Wanted

# Panels of one cluster's members that share a gathered block of rows.
cdef enum:
    SHARED = 4


cdef struct Buffers:
    const tile_isa *isa
    const tile_isa *taken  # of the rows that are taken exactly: the same, or products of bfloat16
    i64 lanes, depth, width, size, rank  # depth counts the own logit: D + 1
    # of a panel of centroids
    float *panel        # [depth][lanes]
    float *o            # [size][lanes]
    float *limits       # [2][lanes]
    float *top          # [lanes], as the four below: largest score of one cluster of keys
    float *mass         # sum of 2^(score - top)
    float *peak         # largest top of the clusters that have a tail
    float *total        # their sum
    float *ones
    float *tops         # [key clusters][lanes]
    float *masses       # [key clusters][lanes]
    int32_t *numbers    # [key clusters][lanes]: where a cluster stands in the tail, or -1
    float *slopes       # [lanes][slope_stride]: [rank][width], of keys that are not listed
    float *centers      # [rank][lanes]: the centroids on the axes
    float *tails        # [lanes][key clusters + 1][size]; the last row of a lane is for what nobody reads
    int64_t *places     # [lanes]
    i64 *n_tail         # [lanes]
    Wanted wanted
    int32_t in_order[TILE_KEYS]  # 0, 1, 2 ...
    tile_lists lists[2]  # rows that are taken, and those of the tail whose slope counts
    # of a cluster's members
    float *members      # SHARED of [depth][lanes], [width][lanes], 4 x [lanes], and for pairs [n_words][lanes]
    size_t member_size
    i64 slope_stride    # more than whole pages: else the lanes' slopes would meet in the cache
    i64 n_words         # of a packed query or key: the coordinates, and two halves of the own logit
    float *s
    float *peaks
    float *alpha
    float *gathered     # [TILE_KEYS][size], for pairs [TILE_KEYS][2 * n_words + width]
    float *keys         # for pairs: [TILE_KEYS][n_words]
    float *values       # for pairs: [TILE_KEYS / 2][width]
    float *u            # [rank][lanes]
    float *on_axes      # [rank]: the centroid on the axes
    float *center       # [D]
    float *spreads      # [D]: mean square of the listed keys
    float *off          # [D][lanes]
    float *slope        # [D][width], of keys that are listed
    float *key_panels   # [panels of D][TILE_KEYS][lanes]
    float *products     # [panels of D][width][lanes]
    float *memory


cdef inline float *cut(float **place, size_t n_floats) noexcept nogil:
    """The next piece of a buffer."""
    cdef float *piece = place[0]
    place[0] += padded(n_floats)
    return piece


cdef inline size_t lay_out(Buffers *w, float *memory, i64 n_clusters) noexcept nogil:
    """Cut the memory into buffers; the floats that takes."""
    cdef size_t lanes = padded(w.lanes), n_panels = (w.depth + w.lanes - 2) // w.lanes
    cdef float *place = memory
    w.panel = cut(&place, w.depth * lanes)
    w.o = cut(&place, w.size * lanes)
    w.limits = cut(&place, 2 * lanes)
    w.top, w.mass, w.peak = cut(&place, lanes), cut(&place, lanes), cut(&place, lanes)
    w.total, w.ones = cut(&place, lanes), cut(&place, lanes)
    w.tops, w.masses = cut(&place, n_clusters * lanes), cut(&place, n_clusters * lanes)
    w.numbers = <int32_t *> cut(&place, n_clusters * lanes)
    w.slopes = cut(&place, lanes * w.slope_stride)
    w.tails = cut(&place, lanes * (n_clusters + 1) * w.size)
    w.centers, w.u, w.on_axes = cut(&place, w.rank * lanes), cut(&place, w.rank * lanes), cut(&place, w.rank)
    w.places, w.n_tail = <int64_t *> cut(&place, 2 * lanes), <i64 *> cut(&place, 2 * lanes)
    w.lists[0].counts, w.lists[1].counts = <i64 *> cut(&place, 2 * lanes), <i64 *> cut(&place, 2 * lanes)
    w.members = cut(&place, SHARED * w.member_size)
    w.s, w.peaks = cut(&place, TILE_KEYS * lanes), cut(&place, (TILE_KEYS + 1) * lanes)
    w.alpha = cut(&place, lanes)
    w.gathered = cut(&place, TILE_KEYS * (2 * w.n_words + w.size))
    w.keys, w.values = cut(&place, TILE_KEYS * w.n_words), cut(&place, TILE_KEYS * w.width if w.n_words else 0)
    w.center, w.spreads, w.off = cut(&place, w.depth), cut(&place, w.depth), cut(&place, w.depth * lanes)
    w.slope = cut(&place, w.depth * w.width)
    w.key_panels = cut(&place, n_panels * TILE_KEYS * lanes)
    w.products = cut(&place, n_panels * w.width * lanes)
    return place - memory


cdef inline bint buffers_new(Buffers *w, const tile_isa *taken, i64 depth, i64 size, i64 rank, i64 n_clusters,
                             i64 n_keys) noexcept nogil:
    """Buffers for one thread, with room for the longest sequence; False where memory is out."""
    cdef:
        i64 i, room
        float *listed
    w.isa, w.taken = current(), taken
    w.lanes, w.depth, w.size, w.rank, w.width = w.isa.lanes, depth, size, rank, size - depth
    w.slope_stride = padded(rank * w.width) + 16
    w.n_words = depth // 2 + 1 if taken.pair > 1 else 0
    w.member_size = (depth + w.width + 4 + w.n_words) * padded(w.lanes)
    w.memory = new_floats(lay_out(w, NULL, n_clusters))
    room = padded(n_keys)
    listed = new_floats(4 * w.lanes * room)  # pages that are not touched cost nothing
    if w.memory == NULL or listed == NULL:
        free_floats(w.memory)
        free_floats(listed)
        return False
    for i in range(2):
        w.lists[i].room = room
        w.lists[i].rows = <int32_t *> listed + 2 * i * w.lanes * room
        w.lists[i].scores = listed + (2 * i + 1) * w.lanes * room
    lay_out(w, w.memory, n_clusters)
    for i in range(w.lanes):
        w.ones[i] = 1
    for i in range(TILE_KEYS):
        w.in_order[i] = <int32_t> i
    return True


cdef inline void buffers_free(Buffers *w) noexcept nogil:
    free_floats(w.memory)
    free_floats(<float *> w.lists[0].rows)
