/* Functions of single elements and of rows, for one instruction set: one table each, as in tile.h. */
#ifndef PYCLATTN_ROWS_H
#define PYCLATTN_ROWS_H
#include "tile.h"

/* Beyond the activations of tile.h, in the order of rows.pyx. */
enum { ROWS_TANH = TILE_SIGMOID + 1, ROWS_EXP, ROWS_ERF };

typedef struct {
    /* out[i] = kind(x[i]); out may be x */
    void (*apply)(int kind, const float *x, i64 n, float *out);
    /* rows of x + residual with mean 0 (not if is_rms) and mean square 1, times weight plus bias. total gets the sums;
     * residual, weight, bias and total may be NULL, and x, residual, total and out of a row the same */
    void (*normalise)(const float *x, const float *residual, i64 width, int is_rms, float epsilon, const float *weight,
                      const float *bias, float *total, float *out);
} rows_isa;

extern const rows_isa rows_baseline;
#ifdef TILE_X86
extern const rows_isa rows_avx2, rows_avx512;
#endif
#endif
