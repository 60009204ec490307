/* The terms of a product as float32, one by one. */

#define PAIR 1
typedef float term;
typedef vf terms;

INL terms spread_term(term x) { return spread(x); }
INL vf add_product(vf sum, terms x, terms y) { return sum + x * y; }
INL i64 n_terms(i64 n) { return n; }

#define PEAK_FACTOR 0.999f
#define PEAK_STEP(sum, x) ((sum) * (x) + 0.001f)

static void tile_pack_rows(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, float *packed) {
    for (i64 k = 0; k < n; k++)
        memcpy(packed + k * width, rows + (index ? index[k] : k) * stride, width * sizeof(float));
}

static void tile_pack_columns(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, float *packed) {
    tile_pack_rows(rows, stride, index, n, width, packed);
}

/* The softmax's weights 2^(s - top), in place, and their sum. */
INL void soften_block(int nv, vf *s, i64 n, const vf *m, vf *sum, int is_masked) {
    vf top[NV], total[NV];
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) {
        top[j] = m[j];
        total[j] = (vf){0};
    }
#pragma GCC unroll 1
    for (i64 k = 0; k < n; k++)
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) {
            vf x = s[k * NV + j], e = exp2_neg(x - top[j]);
            if (is_masked) e = blend(x == spread(TILE_MASKED), (vf){0}, e);
            s[k * NV + j] = e;
            total[j] += e;
        }
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) sum[j] = total[j];
}
