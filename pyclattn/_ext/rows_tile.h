/* The functions of rows.h on the vectors of lanes.h. */
#include "lanes.h"
#include "rows.h"
#include "functions.h"

INL vf row_function(int kind, vf x) {
    switch (kind) {
    case ROWS_TANH: return tanh_of(x);
    case ROWS_EXP: return exponential(x);
    case ROWS_ERF: return erf_of(x);
    default: return activated(kind, x);
    }
}

INL vf part_of(const float *x, i64 n) {
    vf v = {0};
    memcpy(&v, x, n * sizeof(float));
    return v;
}

INL void apply_all(int kind, const float *x, i64 n, float *out) {
    for (; n >= VL; n -= VL, x += VL, out += VL) {
        vf y;
        memcpy(&y, x, sizeof y);
        y = row_function(kind, y);
        memcpy(out, &y, sizeof y);
    }
    if (n) {
        vf y = row_function(kind, part_of(x, n));
        memcpy(out, &y, n * sizeof(float));
    }
}

#define APPLY(kind) case kind: apply_all(kind, x, n, out); break;

static void rows_apply(int kind, const float *x, i64 n, float *out) {
    switch (kind) {
        APPLY(TILE_RELU) APPLY(TILE_GELU) APPLY(TILE_GELU_TANH) APPLY(TILE_QUICK_GELU) APPLY(TILE_SILU)
        APPLY(TILE_SIGMOID) APPLY(ROWS_TANH) APPLY(ROWS_EXP) APPLY(ROWS_ERF)
    }
}

INL float total_of(vf a, vf b, vf c, vf d) {
    vf sum = (a + b) + (c + d);
    v4 parts[VL / 4];
    memcpy(parts, &sum, sizeof sum);
    for (int n = VL / 8; n; n /= 2) /* halves: a chain through all lanes takes longer than a short row */
        for (int i = 0; i < n; i++) parts[i] += parts[i + n];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

/* Sum of f(part of the row) in four chains; f is an expression in `v`, the part, zero beyond the end. */
#define ROW_SUM(row, n, f, sum)                                                          \
    {                                                                                    \
        vf chain[4] = {{0}}, v;                                                          \
        i64 at = 0;                                                                     \
        for (; at + 4 * VL <= (n); at += 4 * VL)                                         \
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {                        \
                memcpy(&v, (row) + at + j * VL, sizeof v);                               \
                chain[j] += (f);                                                         \
            }                                                                            \
        for (; at + VL <= (n); at += VL) {                                               \
            memcpy(&v, (row) + at, sizeof v);                                            \
            chain[0] += (f);                                                             \
        }                                                                                \
        sum = total_of(chain[0], chain[1], chain[2], chain[3]);                          \
        for (; at < (n); at++) {                                                         \
            v = spread((row)[at]);                                                       \
            sum += (f)[0];                                                               \
        }                                                                                \
    }

static void rows_normalise(const float *x, const float *residual, i64 width, int is_rms, float epsilon,
                           const float *weight, const float *bias, float *total, float *out) {
    if (residual) {
        float *sums = total ? total : out;
        for (i64 i = 0; i < width; i++) sums[i] = x[i] + residual[i];
        x = sums;
    }
    float mean = 0, square = 0;
    if (!is_rms) {
        ROW_SUM(x, width, v, mean)
        mean /= width;
    }
    ROW_SUM(x, width, (v - mean) * (v - mean), square)
    float scale = 1.f / sqrtf(square / width + epsilon);
    for (i64 i = 0; i < width; i += VL) {
        i64 n = width - i < VL ? width - i : VL;
        int whole = n == VL;
        vf y = ((whole ? part_of(x + i, VL) : part_of(x + i, n)) - mean) * scale;
        if (weight) y *= whole ? part_of(weight + i, VL) : part_of(weight + i, n);
        if (bias) y += whole ? part_of(bias + i, VL) : part_of(bias + i, n);
        memcpy(out + i, &y, n * sizeof(float));
    }
}

#define JOIN(a, b) a##b
#define TABLE_NAME(isa) JOIN(rows_, isa)
const rows_isa TABLE_NAME(ISA) = {rows_apply, rows_normalise};
