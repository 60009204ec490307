/* The vector vocabulary of one instruction set. The including file defines
 *   VB  bytes of a vector     MR  keys of a register tile     NV  vectors of a register tile
 * so that MR x NV accumulators, NV queries and a broadcast fit the registers. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "tile.h"

#define VL (VB / 4)
#define LANES (NV * VL)
#define INL static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VB)));
typedef int32_t vi __attribute__((vector_size(VB)));
typedef uint32_t vu __attribute__((vector_size(VB)));
typedef float loose_vf __attribute__((vector_size(VB), aligned(4), may_alias)); /* at any float */
typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t i4 __attribute__((vector_size(16)));

INL vf spread(float x) { return x - (vf){0}; }
INL vi spread_int(int32_t x) { return x - (vi){0}; }
INL vf blend(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* Where either is NaN the second wins: larger(x, m) keeps m, larger(bound, x) and smaller(bound, x) keep x. The lanes
 * that a mask names are the bits of lanes_in. */
#if VB == 64
#include "x86.h"
INL vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INL vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INL uint32_t lanes_in(vi mask) { return _mm512_movepi32_mask((__m512i)mask); }
INL uint32_t above(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INL vi where_above(vf a, vf b, vi yes, vi no) {
    return (vi)_mm512_mask_mov_epi32((__m512i)no, (__mmask16)above(a, b), (__m512i)yes);
}
#else
#if VB == 32
#include "x86.h"
INL vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INL vf smaller(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INL uint32_t lanes_in(vi mask) { return _mm256_movemask_ps((__m256)mask); }
#elif defined(__SSE2__)
#include <emmintrin.h>
INL vf larger(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INL vf smaller(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
INL uint32_t lanes_in(vi mask) { return _mm_movemask_ps((__m128)mask); }
#else
INL vf larger(vf a, vf b) { return blend(a > b, a, b); }
INL vf smaller(vf a, vf b) { return blend(a < b, a, b); }
INL uint32_t lanes_in(vi mask) {
    uint32_t bits = 0;
    for (int i = 0; i < VL; i++) bits |= (uint32_t)(mask[i] & 1) << i;
    return bits;
}
#endif
INL uint32_t above(vf a, vf b) { return lanes_in(a > b); }
INL vi where_above(vf a, vf b, vi yes, vi no) { return (vi)blend(a > b, (vf)yes, (vf)no); }
#endif

/* 2^x for x <= 0, clamped at -100: 2^-100 is nothing beside the 1 that a maximum gives, and no subnormal number, which
 * some processors multiply a hundred times slower.
 * Adding 1.5 x 2^23 rounds x to a whole number in the low bits; the polynomial is 2^f for |f| <= 1/2, to 1.4 ulp. Its
 * constant is exactly 1: else every block of keys would re-weigh the earlier ones. */
INL vf exp2_neg(vf x) {
    x = larger(spread(-100.f), x);
    vf t = x + 12582912.f;
    vf f = x - (t - 12582912.f);
    vf p = spread(1.3264727e-3f);
    p = p * f + 9.671513e-3f;
    p = p * f + 5.5507336e-2f;
    p = p * f + 2.4022242e-1f;
    p = p * f + 6.93147e-1f;
    p = p * f + 1.0f;
    return (vf)((vu)p + ((vu)t << 23));
}

/* A whole vector to an aligned place past the cache: what is written there is not read first. */
#if VB == 64
INL void stream(float *out, vf x) { _mm512_stream_ps(out, (__m512)x); }
#elif VB == 32
INL void stream(float *out, vf x) { _mm256_stream_ps(out, (__m256)x); }
#else
INL void stream(float *out, vf x) { *(vf *)out = x; }
#endif
INL int is_aligned(const float *row, i64 stride) { return (uintptr_t)row % VB == 0 && stride % VL == 0; }

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif

/* Rows of a 4 x 4 block become columns. */
INL void transpose4(v4 r[4]) {
    v4 a = SHUFFLE4(r[0], r[1], 0, 4, 1, 5), b = SHUFFLE4(r[0], r[1], 2, 6, 3, 7);
    v4 c = SHUFFLE4(r[2], r[3], 0, 4, 1, 5), d = SHUFFLE4(r[2], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLE4(a, c, 0, 1, 4, 5);
    r[1] = SHUFFLE4(a, c, 2, 3, 6, 7);
    r[2] = SHUFFLE4(b, d, 0, 1, 4, 5);
    r[3] = SHUFFLE4(b, d, 2, 3, 6, 7);
}

/* Rows of a VL x VL block become columns: first within 16 bytes, four rows together, then 16 bytes at a time. */
#if VB == 64
#define PAIRS(half, a, b) (vf) _mm512_unpack##half##_ps((__m512)(a), (__m512)(b))
#define QUADS(half, a, b) (vf) _mm512_castpd_ps(_mm512_unpack##half##_pd((__m512d)(a), (__m512d)(b)))
#define QUARTERS(a, b, which) (vf) _mm512_shuffle_f32x4((__m512)(a), (__m512)(b), which)
#elif VB == 32
#define PAIRS(half, a, b) (vf) _mm256_unpack##half##_ps((__m256)(a), (__m256)(b))
#define QUADS(half, a, b) (vf) _mm256_castpd_ps(_mm256_unpack##half##_pd((__m256d)(a), (__m256d)(b)))
#endif
#if VL > 4
INL void transpose(vf r[VL]) {
    vf t[VL];
#pragma GCC unroll 4
    for (int i = 0; i < VL; i += 4) {
        vf a = PAIRS(lo, r[i], r[i + 1]), b = PAIRS(hi, r[i], r[i + 1]);
        vf c = PAIRS(lo, r[i + 2], r[i + 3]), d = PAIRS(hi, r[i + 2], r[i + 3]);
        t[i] = QUADS(lo, a, c), t[i + 1] = QUADS(hi, a, c);
        t[i + 2] = QUADS(lo, b, d), t[i + 3] = QUADS(hi, b, d);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
#if VB == 64
        vf even = QUARTERS(t[j], t[j + 4], 0x88), odd = QUARTERS(t[j], t[j + 4], 0xdd);
        vf even2 = QUARTERS(t[j + 8], t[j + 12], 0x88), odd2 = QUARTERS(t[j + 8], t[j + 12], 0xdd);
        r[j] = QUARTERS(even, even2, 0x88), r[j + 4] = QUARTERS(odd, odd2, 0x88);
        r[j + 8] = QUARTERS(even, even2, 0xdd), r[j + 12] = QUARTERS(odd, odd2, 0xdd);
#else
        r[j] = (vf)_mm256_permute2f128_ps((__m256)t[j], (__m256)t[j + 4], 0x20);
        r[j + 4] = (vf)_mm256_permute2f128_ps((__m256)t[j], (__m256)t[j + 4], 0x31);
#endif
    }
}
#else
INL void transpose(vf r[VL]) { transpose4((v4 *)r); }
#endif
