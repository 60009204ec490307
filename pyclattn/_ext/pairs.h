/* bfloat16 in pairs: two terms of a sum in 32 bits, the earlier one in the low half, multiplied and added to a float32
 * at once. lanes_avx512_bf16.c compiles panels.h over it, so that a table of pairs is that of AVX-512 but for what is
 * multiplied: queries, keys, values and softmax weights. Rounding is to nearest even, a subnormal number counts as 0,
 * and a sum of odd length ends with a 0. */

#define PAIR 2
typedef int32_t term __attribute__((may_alias));
typedef int32_t terms __attribute__((vector_size(VB), may_alias));

INL terms spread_term(term x) { return x - (terms){0}; }
INL vf add_product(vf sum, terms x, terms y) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
}
INL i64 n_terms(i64 n) { return (n + 1) / 2; }

#define PEAK_FACTOR 0x00800080 /* twice 2^-126 */
#define PEAK_STEP(sum, x) add_product(sum, x, x)
#define ONES 0x3f803f80

/* 32 numbers in their order. */
INL terms side_by_side(vf first, vf second) { return (terms)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

/* Lane by lane: first in the low half, second in the high one. */
INL terms pair_of(vf first, vf second) {
    const __m512i lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (terms)_mm512_permutexvar_epi16(lanes, (__m512i)side_by_side(first, second));
}

/* The first n lanes, or all. */
INL vf load_some(const float *from, i64 n) {
    if (n >= VL) return *(const loose_vf *)from;
    return n > 0 ? (vf)_mm512_maskz_loadu_ps((1u << n) - 1, from) : (vf){0};
}

INL void store_some(float *to, terms x, i64 n) {
    if (n >= VL) *(loose_vf *)to = (vf)x;
    else _mm512_mask_storeu_epi32(to, (1u << n) - 1, (__m512i)x);
}

static void tile_pack_rows(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, float *packed) {
    i64 size = n_terms(width);
    for (i64 k = 0; k < n; k++, packed += size) {
        const float *row = rows + (index ? index[k] : k) * stride;
        for (i64 t = 0; t < size; t += VL) {
            const float *at = row + 2 * t;
            i64 left = width - 2 * t;
            store_some(packed + t, side_by_side(load_some(at, left), load_some(at + VL, left - VL)), size - t);
        }
    }
}

/* May be in place: what is written has been read. */
static void tile_pack_columns(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, float *packed) {
    for (i64 k = 0; k < n; k += 2, packed += width) {
        const float *first = rows + (index ? index[k] : k) * stride, *second = first;
        if (k + 1 < n) second = rows + (index ? index[k + 1] : k + 1) * stride;
        for (i64 e = 0; e < width; e += VL) {
            vf below = k + 1 < n ? load_some(second + e, width - e) : (vf){0};
            store_some(packed + e, pair_of(load_some(first + e, width - e), below), width - e);
        }
    }
}

/* 2^x for x <= 0 as `exp2_neg`, to 1e-4: a weight is rounded to 4e-3. Half of its last bit is added, so that cutting
 * it off rounds. */
INL vf exp2_to_round(vf x) {
    x = larger(spread(-100.f), x);
    vf f = (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
    vf p = spread(0.07706724f);
    p = p * f + 0.22764498f;
    p = p * f + 0.69511663f;
    p = p * f + 1.00390625f;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
}

INL vf weight_of(vf s, vf top, int is_masked) {
    vf e = exp2_to_round(s - top);
    return is_masked ? blend(s == spread(TILE_MASKED), (vf){0}, e) : e;
}

/* The leading halves: first in the low half, second in the high one. */
INL terms halves_of(vf first, vf second) {
    return (terms)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)((vu)first >> 16), (__m512i)second);
}

/* The softmax's weights 2^(s - top), in place, and their sum: that of the rounded ones, which divides what they weigh. */
INL void soften_block(int nv, vf *s, i64 n, const vf *m, vf *sum, int is_masked) {
    vf top[NV], total[NV];
    terms *weights = (terms *)s;
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) {
        top[j] = m[j];
        total[j] = (vf){0};
    }
#pragma GCC unroll 1
    for (i64 k = 0; k < n; k += 2)
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) {
            vf second = k + 1 < n ? weight_of(s[(k + 1) * NV + j], top[j], is_masked) : (vf){0};
            terms both = halves_of(weight_of(s[k * NV + j], top[j], is_masked), second);
            weights[k / 2 * NV + j] = both;
            total[j] = add_product(total[j], both, spread_term(ONES));
        }
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) sum[j] = total[j];
}
