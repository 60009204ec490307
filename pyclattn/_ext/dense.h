/* What comes after a product of rows with a panel of columns: bias, activation, residual, and the way out. */

INL vf smaller(vf bound, vf x) { return -larger(-bound, -x); } /* where x is NaN it stays NaN */

/* 1 / (1 + exp(-x)), relative to 2 ulp on both sides: only exponentials of negative numbers. */
INL vf logistic(vf x) {
    vf y = (vf)((vi)x | spread_int(INT32_MIN)) * LOG2E; /* -|x| */
    vf e = blend(y < spread(-100.f), (vf){0}, exp2_neg(y));
    vf share = 1.f / (1.f + e);
    return blend(x < (vf){0}, e * share, share);
}

/* The normal distribution function is logistic(2 x P(x^2)), since erf(z) = tanh(z P(z^2)) with a smooth P: the
 * polynomial of graph/ops/functions.py, doubled. Beyond 5.4 it rounds to 0 or 1. */
INL vf normal_share(vf x) {
    vf square = smaller(spread(28.88f), x * x);
    vf p = spread(3.51258429e-09f);
    p = p * square - 2.64534551e-07f;
    p = p * square + 7.92957737e-06f;
    p = p * square - 0.000110612815f;
    p = p * square - 6.51890598e-05f;
    p = p * square + 0.0726661685f;
    p = p * square + 1.59576989f;
    return logistic(p * x);
}

INL vf gelu(vf x) { return x * normal_share(x); }

INL vf activated(int kind, vf x) {
    switch (kind) {
    case TILE_RELU: return larger((vf){0}, x);
    case TILE_GELU: return gelu(x);
    case TILE_GELU_TANH: return x * logistic(x * (x * x * 0.071354816f + 1.5957691f)); /* sqrt(8 / pi) */
    case TILE_QUICK_GELU: return x * logistic(1.702f * x);
    case TILE_SILU: return x * logistic(x);
    case TILE_SIGMOID: return logistic(x);
    default: return x;
    }
}

INL void finish_part(int kind, const vf *s, const vf *shift, const float *residual, float *out, size_t bytes) {
    vf x = activated(kind, *s + *shift);
    if (residual) {
        vf added = {0};
        memcpy(&added, residual, bytes);
        x += added;
    }
    memcpy(out, &x, bytes);
}

INL void finish_rows(int kind, const vf *s, long n, long width, const float *bias, const float *residual,
                     long residual_stride, float *out, long stride) {
    vf shift[NV] = {{0}};
    if (bias) memcpy(shift, bias, width * sizeof(float));
    long whole = width / VL, rest = width % VL;
    for (long r = 0; r < n; r++, s += NV, out += stride, residual += residual ? residual_stride : 0) {
        for (long j = 0; j < whole; j++)
            finish_part(kind, s + j, shift + j, residual ? residual + j * VL : 0, out + j * VL, sizeof(vf));
        if (rest)
            finish_part(kind, s + whole, shift + whole, residual ? residual + whole * VL : 0, out + whole * VL,
                        rest * sizeof(float));
    }
}

#define FINISH(kind) finish_rows(kind, (const vf *)s, n, width, bias, residual, residual_stride, out, stride)

static void tile_finish(const float *s, long n, long width, const float *bias, int activation, const float *residual,
                        long residual_stride, float *out, long stride) {
    switch (activation) {
    case TILE_RELU: FINISH(TILE_RELU); break;
    case TILE_GELU: FINISH(TILE_GELU); break;
    case TILE_GELU_TANH: FINISH(TILE_GELU_TANH); break;
    case TILE_QUICK_GELU: FINISH(TILE_QUICK_GELU); break;
    case TILE_SILU: FINISH(TILE_SILU); break;
    case TILE_SIGMOID: FINISH(TILE_SIGMOID); break;
    default: FINISH(TILE_NO_ACTIVATION);
    }
}
