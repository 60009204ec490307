/* What comes after a product of rows with a panel of columns: bias, activation, residual, and the way out. */

#include "functions.h"

INL void finish_part(int kind, const vf *s, const vf *shift, const float *residual, float *out, size_t bytes) {
    vf x = activated(kind, *s + *shift);
    if (residual) {
        vf added = {0};
        memcpy(&added, residual, bytes);
        x += added;
    }
    memcpy(out, &x, bytes);
}

INL void finish_rows(int kind, const vf *s, i64 n, i64 width, const float *bias, const float *residual,
                     i64 residual_stride, float *out, i64 stride) {
    vf shift[NV] = {{0}};
    if (bias) memcpy(shift, bias, width * sizeof(float));
    i64 whole = width / VL, rest = width % VL;
    for (i64 r = 0; r < n; r++, s += NV, out += stride, residual += residual ? residual_stride : 0) {
        for (i64 j = 0; j < whole; j++)
            finish_part(kind, s + j, shift + j, residual ? residual + j * VL : 0, out + j * VL, sizeof(vf));
        if (rest)
            finish_part(kind, s + whole, shift + whole, residual ? residual + whole * VL : 0, out + whole * VL,
                        rest * sizeof(float));
    }
}

/* The same without activation and residual, of whole vectors, past the cache. */
static void finish_far(const vf *s, i64 n, i64 width, const float *bias, float *out, i64 stride) {
    vf shift[NV] = {{0}};
    if (bias) memcpy(shift, bias, width * sizeof(float));
    for (i64 r = 0; r < n; r++, s += NV, out += stride)
        for (i64 j = 0; j < width / VL; j++) stream(out + j * VL, s[j] + shift[j]);
}

#define FINISH(kind) finish_rows(kind, (const vf *)s, n, width, bias, residual, residual_stride, out, stride)

static void tile_finish(const float *s, i64 n, i64 width, const float *bias, int activation, const float *residual,
                        i64 residual_stride, float *out, i64 stride) {
    if (activation == TILE_FAR) {
        if (!residual && width % VL == 0 && is_aligned(out, stride)) {
            finish_far((const vf *)s, n, width, bias, out, stride);
            return;
        }
        activation = TILE_NO_ACTIVATION;
    }
    switch (activation) {
    case TILE_RELU: FINISH(TILE_RELU); break;
    case TILE_GELU: FINISH(TILE_GELU); break;
    case TILE_ROUGH_GELU: FINISH(TILE_ROUGH_GELU); break;
    case TILE_GELU_TANH: FINISH(TILE_GELU_TANH); break;
    case TILE_QUICK_GELU: FINISH(TILE_QUICK_GELU); break;
    case TILE_SILU: FINISH(TILE_SILU); break;
    case TILE_SIGMOID: FINISH(TILE_SIGMOID); break;
    default: FINISH(TILE_NO_ACTIVATION);
    }
}
