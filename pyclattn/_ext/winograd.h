/* Transposed convolutions of stride 2 by 4 x 4 numbers with 36 products for 16 outputs instead of 64.
 *
 * Output 4 t + 2 e + p of an axis (e, p = 0, 1) is d[e] g0 + d[e + 1] g1, where d = input 2 t - 1, 2 t and 2 t + 1, and
 * g0, g1 = kernel p + 2 and p. Winograd's F(2, 2) has both e from three products:
 *   m = ((d0 - d1) g0, d1 (g0 + g1), (d1 - d2) g1),   outputs m0 + m1 and m1 - m2
 * (Lavin and Gray 2016, arXiv 1509.09308, section 4, for a kernel of two). On two axes nine of these products, summed
 * over channels by the tile (tile.h), make 2 x 2 outputs of a phase (p of rows, p of columns); the four phases see the
 * same nine differences. Here are the transforms before and after, with tiles of the output in the lanes.
 */
#ifndef PYCLATTN_WINOGRAD_H
#define PYCLATTN_WINOGRAD_H
#include "tile.h"

enum { WINOGRAD_TERMS = 9 };

typedef struct {
    /* numbers 2 j, 2 j + 1 and 2 j + 2 of a row to lane j of three rows of a panel, `lanes` floats apart */
    void (*deal)(const float *row, i64 n, float *panel);
    /* d[row][column], nine rows of a panel, to the nine differences, `step` floats apart */
    void (*enter)(const float *d, float *panel, i64 step);
    /* sums m[p of columns][3][3] of a channel and one p of rows, `step` floats apart, to lines[e of rows]: the four
     * columns of lane 0, of lane 1, ...; plus a bias, and negative ones to 0 if asked for */
    void (*leave)(const float *m, i64 step, float bias, int is_relu, float *lines);
} winograd_isa;

extern const winograd_isa winograd_baseline;
#ifdef TILE_X86
extern const winograd_isa winograd_avx2, winograd_avx512;
#endif
#endif
