/* What comes after a product of rows with a panel of columns: bias, activation, and the way out. */

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
INL vf gelu(vf x) {
    vf square = smaller(spread(28.88f), x * x);
    vf p = spread(3.51258429e-09f);
    p = p * square - 2.64534551e-07f;
    p = p * square + 7.92957737e-06f;
    p = p * square - 0.000110612815f;
    p = p * square - 6.51890598e-05f;
    p = p * square + 0.0726661685f;
    p = p * square + 1.59576989f;
    return x * logistic(p * x);
}

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

INL void finish_rows(int kind, const vf *s, long n, long width, const float *bias, float *out, long stride) {
    vf shift[NV] = {{0}};
    if (bias) memcpy(shift, bias, width * sizeof(float));
    long whole = width / VL, rest = width % VL;
    for (long r = 0; r < n; r++) {
        for (long j = 0; j < whole; j++) {
            vf x = activated(kind, s[r * NV + j] + shift[j]);
            memcpy(out + r * stride + j * VL, &x, sizeof x);
        }
        if (rest) {
            vf x = activated(kind, s[r * NV + whole] + shift[whole]);
            memcpy(out + r * stride + whole * VL, &x, rest * sizeof(float));
        }
    }
}

static void tile_finish(const float *s, long n, long width, const float *bias, int activation, float *out,
                        long stride) {
    const vf *sums = (const vf *)s;
    switch (activation) {
    case TILE_RELU: finish_rows(TILE_RELU, sums, n, width, bias, out, stride); break;
    case TILE_GELU: finish_rows(TILE_GELU, sums, n, width, bias, out, stride); break;
    case TILE_GELU_TANH: finish_rows(TILE_GELU_TANH, sums, n, width, bias, out, stride); break;
    case TILE_QUICK_GELU: finish_rows(TILE_QUICK_GELU, sums, n, width, bias, out, stride); break;
    case TILE_SILU: finish_rows(TILE_SILU, sums, n, width, bias, out, stride); break;
    case TILE_SIGMOID: finish_rows(TILE_SIGMOID, sums, n, width, bias, out, stride); break;
    default: finish_rows(TILE_NO_ACTIVATION, sums, n, width, bias, out, stride);
    }
}
