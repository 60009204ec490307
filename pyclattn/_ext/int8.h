/* Products of 8-bit whole numbers, summed exactly: codes of rows (0 to 255) by packed weights (-128 to 127).
 *
 * A panel holds `lanes` columns of a weight in groups of four rows: panel[(g * lanes + c) * 4 + i] is row 4 g + i of
 * column c, zeros at the end. One step multiplies the four codes of a row's group, spread over the lanes, by the four
 * numbers of each lane, and adds the four products to the lane's int32. No step rounds or saturates. The columns of a
 * panel are those of the float32 tile (tile.h) of the same name, which takes the sums out.
 */
#ifndef PYCLATTN_INT8_H
#define PYCLATTN_INT8_H
#include <stdint.h>
#include "tile.h"

typedef struct {
    const char *name;
    const char *tile; /* the tile.h table whose panels these are */
    i64 lanes;

    /* codes = round(x * 127 / largest |x|) + 128, scale = largest / 127; NaN where the row has a NaN or an infinity.
     * Codes are written in whole vectors: room for up to 15 more. */
    void (*quantise)(const float *row, i64 depth, uint8_t *codes, float *scale);
    /* s[k][c] = sum over i of codes[k][i] panel[i][c] */
    void (*sum)(const uint8_t *codes, i64 stride, i64 n, i64 n_groups, const int8_t *panel, int32_t *s);
    /* s[k][c] = (the same sum - offsets[c]) * row_scales[k] * scales[c] */
    void (*multiply)(const uint8_t *codes, i64 stride, i64 n, i64 n_groups, const int8_t *panel,
                     const int32_t *offsets, const float *scales, const float *row_scales, float *s);
} int8_isa;

extern const int8_isa int8_baseline;
#ifdef TILE_X86
extern const int8_isa int8_avx2, int8_avxvnni, int8_avx512, int8_avx512vnni;
#endif
#endif
