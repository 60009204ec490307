/* The two products over rows that an index names, where they lie, for as many lanes as are in use: with AVX-512 the
 * last vector may be half a one, which takes half the time. Lanes of it that are not in use become anything. */

#if VB == 64
typedef float narrow_vf __attribute__((vector_size(VB / 2), may_alias));
INL narrow_vf larger_narrow(narrow_vf a, narrow_vf b) { return (narrow_vf)_mm256_max_ps((__m256)a, (__m256)b); }
#if BFLOAT16
INL narrow_vf add_narrow(narrow_vf sum, terms x, const terms *y) {
    return (narrow_vf)_mm256_dpbf16_ps((__m256)sum, (__m256bh)_mm512_castsi512_si256((__m512i)x),
                                     (__m256bh)*(const narrow_vf *)y);
}
#else
INL narrow_vf add_narrow(narrow_vf sum, terms x, const terms *y) {
    return sum + (narrow_vf)_mm512_castps512_ps256((__m512)x) * *(const narrow_vf *)y;
}
#endif
#else /* never called */
typedef vf narrow_vf;
INL narrow_vf larger_narrow(narrow_vf a, narrow_vf b) { return larger(a, b); }
INL narrow_vf add_narrow(narrow_vf sum, terms x, const terms *y) { return add_product(sum, x, *y); }
#endif

/* acc[r][j] = sum over t of a_rt * b[t][j], a_rt an expression in r and t; if half, last[r] that of half of b[t][nv]. */
#define SCATTERED_PRODUCT(mr, nv, half, steps, a_rt, b)                       \
    vf acc[MR][NV];                                                        \
    narrow_vf last[MR];                                                      \
    _Pragma("GCC unroll 16") for (int r = 0; r < (mr); r++) {              \
        last[r] = (narrow_vf){0};                                            \
        _Pragma("GCC unroll 8") for (int j = 0; j < (nv); j++) acc[r][j] = (vf){0}; \
    }                                                                      \
    _Pragma("GCC unroll 4") for (i64 t = 0; t < (steps); t++) {            \
        _Pragma("GCC unroll 16") for (int r = 0; r < (mr); r++) {          \
            terms x = spread_term(a_rt);                                   \
            _Pragma("GCC unroll 8") for (int j = 0; j < (nv); j++)         \
                acc[r][j] = add_product(acc[r][j], x, (b)[t * NV + j]);    \
            if (half) last[r] = add_narrow(last[r], x, (b) + t * NV + (nv)); \
        }                                                                  \
    }

/* Scores of MR keys and their largest. */
INL void score_scattered(int nv, int half, const term *keys, i64 stride, const int32_t *index, i64 depth,
                      const terms *panel, vf *s, vf *peak) {
    const term *row[MR];
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) row[r] = keys + index[r] * stride;
    SCATTERED_PRODUCT(MR, nv, half, depth, row[r][t], panel)
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) {
        vf most = spread(TILE_MASKED);
#pragma GCC unroll 16
        for (int r = 0; r < MR; r++) {
            s[r * NV + j] = acc[r][j];
            most = larger(acc[r][j], most);
        }
        peak[j] = most;
    }
    if (!half) return;
    narrow_vf most = TILE_MASKED - (narrow_vf){0};
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
        *(narrow_vf *)(s + r * NV + nv) = last[r];
        most = larger_narrow(last[r], most);
    }
    *(narrow_vf *)(peak + nv) = most;
}

/* mr coordinates of the output over n keys. */
INL void value_scattered(int mr, int nv, int half, const term *values, i64 stride, const int32_t *index, i64 n,
                      const terms *s, const vf *alpha, vf *o) {
    SCATTERED_PRODUCT(mr, nv, half, n, values[index[t] * stride + r], s)
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) o[r * NV + j] = o[r * NV + j] * alpha[j] + acc[r][j];
        narrow_vf *rest = (narrow_vf *)(o + r * NV + nv);
        if (half) *rest = *rest * *(const narrow_vf *)(alpha + nv) + last[r];
    }
}

#define SCATTERED(nv, half)                                                                                         \
    static __attribute__((noinline)) void score_scattered_##nv##_##half(                                           \
        const term *k, i64 ks, const int32_t *index, i64 d, const terms *p, vf *s, vf *peak) {                   \
        score_scattered(nv, half, k, ks, index, d, p, s, peak);                                                     \
    }                                                                                                            \
    static __attribute__((noinline)) void values_scattered_##nv##_##half(                                          \
        const term *v, i64 vs, const int32_t *index, i64 n, const terms *s, const vf *a, vf *o) {                \
        value_scattered(MR, nv, half, v, vs, index, n, s, a, o);                                                    \
    }                                                                                                            \
    static __attribute__((noinline)) void value_scattered_##nv##_##half(                                           \
        const term *v, i64 vs, const int32_t *index, i64 n, const terms *s, const vf *a, vf *o) {                \
        value_scattered(1, nv, half, v, vs, index, n, s, a, o);                                                     \
    }

SCATTERED(1, 0)
SCATTERED(2, 0)
#if NV == 3
SCATTERED(3, 0)
#endif
#if VB == 64
SCATTERED(0, 1)
SCATTERED(1, 1)
SCATTERED(2, 1)
#define BY_HALVES(f) {f##_0_1, f##_1_0, f##_1_1, f##_2_0, f##_2_1, f##_3_0}
#elif NV == 3
#define BY_HALVES(f) {f##_1_0, f##_1_0, f##_2_0, f##_2_0, f##_3_0, f##_3_0}
#else
#define BY_HALVES(f) {f##_1_0, f##_1_0, f##_2_0, f##_2_0}
#endif
typedef void (*scattered_fn)(const term *, i64, const int32_t *, i64, const terms *, const vf *, vf *);
typedef void (*score_scattered_fn)(const term *, i64, const int32_t *, i64, const terms *, vf *, vf *);
static const score_scattered_fn SCORE_SCATTERED[2 * NV] = BY_HALVES(score_scattered);
static const scattered_fn VALUES_SCATTERED[2 * NV] = BY_HALVES(values_scattered);
static const scattered_fn VALUE_SCATTERED[2 * NV] = BY_HALVES(value_scattered);

INL i64 halves_before(i64 n_lanes) { return (n_lanes - 1) / (VL / 2); }

static void tile_score_scattered(const float *rows, i64 stride, const int32_t *index, i64 n, i64 depth,
                              const float *panel, i64 n_lanes, float *s, float *group_peaks) {
    score_scattered_fn score = SCORE_SCATTERED[halves_before(n_lanes)];
    for (i64 k = 0; k < n; k += MR) {
        int32_t some[MR]; /* the last one again, where fewer are left */
        for (i64 r = 0; k + MR > n && r < MR; r++) some[r] = index[k + r < n ? k + r : n - 1];
        score((const term *)rows, stride, k + MR > n ? some : index + k, n_terms(depth), (const terms *)panel,
              (vf *)s + k * NV, (vf *)group_peaks + k / MR * NV);
    }
}

static void tile_accumulate_scattered(const float *rows, i64 stride, const int32_t *index, i64 n, i64 width,
                                   const float *s, i64 n_lanes, const float *alpha, float *o) {
    i64 e = 0;
    for (; e < width; e += e + MR <= width ? MR : 1)
        (e + MR <= width ? VALUES_SCATTERED : VALUE_SCATTERED)[halves_before(n_lanes)](
            (const term *)rows + e, stride, index, n_terms(n), (const terms *)s, (const vf *)alpha, (vf *)o + e * NV);
}
