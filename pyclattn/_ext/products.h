/* The two products of attention on one register tile: MR x NV accumulators, nothing spilled. Their terms are floats, or
 * pairs of bfloat16 (pairs.h). */

/* acc[r][j] = sum over t of a[r * row + t * col] * b[t][j]. The short loops must be
 * unrolled whole, the long one little (four steps: 1 % on AVX2). */
#define PRODUCT(mr, nv, steps, a, row, col, b)                             \
    vf acc[MR][NV];                                                        \
    _Pragma("GCC unroll 16") for (int r = 0; r < (mr); r++)                \
        _Pragma("GCC unroll 8") for (int j = 0; j < (nv); j++) acc[r][j] = (vf){0}; \
    _Pragma("GCC unroll 4") for (i64 t = 0; t < (steps); t++) {           \
        terms q[NV];                                                       \
        _Pragma("GCC unroll 8") for (int j = 0; j < (nv); j++) q[j] = (b)[t * NV + j]; \
        _Pragma("GCC unroll 16") for (int r = 0; r < (mr); r++) {          \
            terms x = spread_term((a)[r * (row) + t * (col)]);             \
            _Pragma("GCC unroll 8") for (int j = 0; j < (nv); j++) acc[r][j] = add_product(acc[r][j], x, q[j]); \
        }                                                                  \
    }

/* Scores of mr keys; `peak` becomes (or, continued, stays at least) their largest. */
INL void score_rows(int mr, int nv, const term *keys, i64 stride, i64 depth, const terms *panel, vf *s, vf *peak,
                    int is_continued) {
    PRODUCT(mr, nv, depth, keys, stride, 1, panel)
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) {
        vf m = is_continued ? peak[j] : spread(TILE_MASKED);
#pragma GCC unroll 16
        for (int r = 0; r < mr; r++) {
            s[r * NV + j] = acc[r][j];
            m = larger(acc[r][j], m);
        }
        peak[j] = m;
    }
}

/* mr coordinates of the output over n keys. */
INL void value_rows(int mr, int nv, const term *values, i64 stride, i64 n, const terms *s, const vf *alpha, vf *o) {
    PRODUCT(mr, nv, n, values, 1, stride, s)
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) o[r * NV + j] = o[r * NV + j] * alpha[j] + acc[r][j];
}

/* Running argmax over mr keys, numbered from `first`, of their score less its offset. */
INL void assign_rows(int mr, int nv, const term *keys, i64 stride, i64 depth, const terms *panel, const float *offsets,
                     int32_t first, vf *best, vi *labels) {
    PRODUCT(mr, nv, depth, keys, stride, 1, panel)
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) {
        vf top = best[j];
        vi label = labels[j];
#pragma GCC unroll 16
        for (int r = 0; r < mr; r++) {
            vf x = acc[r][j] - offsets[r];
            label = where_above(x, top, spread_int(first + r), label);
            top = larger(x, top);
        }
        best[j] = top;
        labels[j] = label;
    }
}

/* One function an (mr, nv): as instances that are not inlined each gets its own registers. */
#define INSTANCES(mr, nv)                                                                                        \
    static __attribute__((noinline)) void score_##mr##_##nv(const term *k, i64 ks, i64 d, const terms *p,      \
                                                            vf *s, vf *peak, int more) {                         \
        score_rows(mr, nv, k, ks, d, p, s, peak, more);                                                          \
    }                                                                                                            \
    static __attribute__((noinline)) void value_##mr##_##nv(const term *v, i64 vs, i64 n, const terms *s,      \
                                                            const vf *a, vf *o) {                                \
        value_rows(mr, nv, v, vs, n, s, a, o);                                                                   \
    }                                                                                                            \
    static __attribute__((noinline)) void assign_##mr##_##nv(const term *k, i64 ks, i64 d, const terms *p,     \
                                                             const float *b, int32_t first, vf *best, vi *l) {   \
        assign_rows(mr, nv, k, ks, d, p, b, first, best, l);                                                     \
    }

typedef void (*score_fn)(const term *, i64, i64, const terms *, vf *, vf *, int);
typedef void (*value_fn)(const term *, i64, i64, const terms *, const vf *, vf *);
typedef void (*assign_fn)(const term *, i64, i64, const terms *, const float *, int32_t, vf *, vi *);

#if NV == 3
#define ROW_INSTANCES(mr) INSTANCES(mr, 1) INSTANCES(mr, 2) INSTANCES(mr, 3)
#define ROW_TABLE(f, mr) {f##_##mr##_1, f##_##mr##_2, f##_##mr##_3}
#else
#define ROW_INSTANCES(mr) INSTANCES(mr, 1) INSTANCES(mr, 2)
#define ROW_TABLE(f, mr) {f##_##mr##_1, f##_##mr##_2}
#endif

/* What is left over after full tiles goes by halves: 4, 2, 1. */
ROW_INSTANCES(1)
ROW_INSTANCES(2)
ROW_INSTANCES(4)
#if MR == 8
ROW_INSTANCES(8)
#define TABLE(f) {ROW_TABLE(f, 1), ROW_TABLE(f, 2), ROW_TABLE(f, 4), ROW_TABLE(f, 8)}
enum { SIZES = 4 };
#else
#define TABLE(f) {ROW_TABLE(f, 1), ROW_TABLE(f, 2), ROW_TABLE(f, 4)}
enum { SIZES = 3 };
#endif
static const score_fn SCORE[SIZES][NV] = TABLE(score);
static const value_fn VALUE[SIZES][NV] = TABLE(value);
static const assign_fn ASSIGN[SIZES][NV] = TABLE(assign);

static void tile_score(const float *rows, i64 stride, i64 n, i64 depth, const float *panel, i64 vectors, float *s,
                       float *group_peaks) {
    const term *keys = (const term *)rows;
    const terms *p = (const terms *)panel;
    vf *scores = (vf *)s, *peaks = (vf *)group_peaks;
    i64 k = 0;
    depth = n_terms(depth);
    for (; k + MR <= n; k += MR, peaks += NV)
        SCORE[SIZES - 1][vectors - 1](keys + k * stride, stride, depth, p, scores + k * NV, peaks, 0);
    int more = 0;
    for (int size = SIZES - 2; size >= 0; size--)
        if ((n - k) >> size) {
            SCORE[size][vectors - 1](keys + k * stride, stride, depth, p, scores + k * NV, peaks, more);
            k += (i64)1 << size;
            more = 1;
        }
}

static void tile_accumulate(const float *rows, i64 stride, i64 n, i64 width, const float *s, i64 vectors,
                            const float *alpha, float *o) {
    const term *values = (const term *)rows;
    const terms *scores = (const terms *)s;
    const vf *a = (const vf *)alpha;
    vf *out = (vf *)o;
    i64 e = 0;
    n = n_terms(n);
    for (; e + MR <= width; e += MR) VALUE[SIZES - 1][vectors - 1](values + e, stride, n, scores, a, out + e * NV);
    for (int size = SIZES - 2; size >= 0; size--)
        if ((width - e) >> size) {
            VALUE[size][vectors - 1](values + e, stride, n, scores, a, out + e * NV);
            e += (i64)1 << size;
        }
}

static void tile_assign(const float *rows, i64 stride, i64 n, i64 depth, const float *panel, i64 vectors,
                        const float *offsets, float *best, int32_t *labels) {
    const term *keys = (const term *)rows;
    i64 k = 0;
    depth = n_terms(depth);
    for (; k + MR <= n; k += MR)
        ASSIGN[SIZES - 1][vectors - 1](keys + k * stride, stride, depth, (const terms *)panel, offsets + k, (int32_t)k,
                                       (vf *)best, (vi *)labels);
    for (int size = SIZES - 2; size >= 0; size--)
        if ((n - k) >> size) {
            ASSIGN[size][vectors - 1](keys + k * stride, stride, depth, (const terms *)panel, offsets + k, (int32_t)k,
                                      (vf *)best, (vi *)labels);
            k += (i64)1 << size;
        }
}

static float tile_fma_loop(i64 rounds) {
    vf acc[MR][NV];
    terms x = spread_term((term)PEAK_FACTOR);
    float start = (float)rounds; /* unknown to the compiler: it would leave out a sum that it knows to stay as it is */
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) acc[r][j] = spread(start + (float)(r * NV + j));
#pragma GCC unroll 1
    for (i64 i = 0; i < rounds; i++) {
#pragma GCC unroll 16
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 8
            for (int j = 0; j < NV; j++) acc[r][j] = PEAK_STEP(acc[r][j], x);
    }
    vf sum = {0};
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) sum += acc[r][j];
    float total = 0;
    for (int i = 0; i < VL; i++) total += sum[i];
    return total;
}
