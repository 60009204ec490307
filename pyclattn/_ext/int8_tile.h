/* The int8 tile of one instruction set. Beside what lanes.h asks for, the including file defines
 *   ISA  its name     TILE  the name of the tile.h table with the same panels     VNNI  if one instruction makes a step
 */
#include "lanes.h"
#include "int8.h"

typedef int16_t vs __attribute__((vector_size(VB)));
typedef uint16_t vus __attribute__((vector_size(VB)));
typedef uint8_t vb __attribute__((vector_size(VB / 4)));

#if VB == 64
INL vi nearest_int(vf x) { return (vi)_mm512_cvtps_epi32((__m512)x); }
#elif VB == 32
INL vi nearest_int(vf x) { return (vi)_mm256_cvtps_epi32((__m256)x); }
#elif defined(__SSE2__)
INL vi nearest_int(vf x) { return (vi)_mm_cvtps_epi32((__m128)x); }
#elif defined(__aarch64__)
#include <arm_neon.h>
INL vi nearest_int(vf x) { return (vi)vcvtnq_s32_f32((float32x4_t)x); }
#else
INL vi nearest_int(vf x) {
    vi y;
    for (int i = 0; i < VL; i++) y[i] = (int32_t)lrintf(x[i]);
    return y;
}
#endif

/* One step of a lane: sum + the four products of its codes and its numbers. Without VNNI the four are taken as two
 * pairs of 16 bits, since the older instruction on bytes saturates its sums. */
#if defined(VNNI)
enum { PARTS = 1 };
INL vi part_of(vi four, int part) { (void)part; return four; }
INL vi codes_of(vi four, int part) { (void)part; return four; }
#if VB == 64
INL vi step(vi sum, vi codes, vi numbers) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)numbers);
}
#else
INL vi step(vi sum, vi codes, vi numbers) {
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)numbers);
}
#endif
#elif VB > 16 || defined(__SSE2__)
enum { PARTS = 2 };
INL vi part_of(vi four, int part) { return part ? (vi)((vs)four >> 8) : (vi)(((vs)four << 8) >> 8); }
INL vi codes_of(vi four, int part) { return part ? (vi)((vus)four >> 8) : four & spread_int(0x00ff00ff); }
INL vi step(vi sum, vi codes, vi numbers) {
#if VB == 64
    return sum + (vi)_mm512_madd_epi16((__m512i)codes, (__m512i)numbers);
#elif VB == 32
    return sum + (vi)_mm256_madd_epi16((__m256i)codes, (__m256i)numbers);
#else
    return sum + (vi)_mm_madd_epi16((__m128i)codes, (__m128i)numbers);
#endif
}
#else
enum { PARTS = 4 };
INL vi part_of(vi four, int part) { return (four << (24 - 8 * part)) >> 24; }
INL vi codes_of(vi four, int part) { return (vi)((vu)four >> (8 * part)) & spread_int(255); }
INL vi step(vi sum, vi codes, vi numbers) { return sum + codes * numbers; }
#endif

/* mr rows; with scales the sums become floats. */
INL void int8_rows(int mr, const uint8_t *codes, i64 stride, i64 n_groups, const vi *panel, const int32_t *offsets,
                   const float *scales, const float *row_scales, vi *s) {
    vi acc[MR][NV];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) acc[r][j] = (vi){0};
#pragma GCC unroll 1
    for (i64 g = 0; g < n_groups; g++) {
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            vi numbers[NV];
#pragma GCC unroll 8
            for (int j = 0; j < NV; j++) numbers[j] = part_of(panel[g * NV + j], part);
#pragma GCC unroll 16
            for (int r = 0; r < mr; r++) {
                int32_t four;
                memcpy(&four, codes + r * stride + 4 * g, 4);
                vi x = codes_of(spread_int(four), part);
#pragma GCC unroll 8
                for (int j = 0; j < NV; j++) acc[r][j] = step(acc[r][j], x, numbers[j]);
            }
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) {
        vi offset = {0};
        vf scale = {0};
        if (scales) {
            memcpy(&offset, offsets + j * VL, sizeof offset);
            memcpy(&scale, scales + j * VL, sizeof scale);
        }
#pragma GCC unroll 16
        for (int r = 0; r < mr; r++) {
            if (scales) {
                vf product = __builtin_convertvector(acc[r][j] - offset, vf) * (scale * row_scales[r]);
                s[r * NV + j] = (vi)product;
            } else {
                s[r * NV + j] = acc[r][j];
            }
        }
    }
}

typedef void (*int8_fn)(const uint8_t *, i64, i64, const vi *, const int32_t *, const float *, const float *,
                        vi *);

/* As instances that are not inlined each gets its own registers (products.h). */
#define INT8_INSTANCE(mr)                                                                                         \
    static __attribute__((noinline)) void multiply_##mr(const uint8_t *c, i64 stride, i64 n, const vi *p,       \
                                                        const int32_t *o, const float *f, const float *rf, vi *s) { \
        int8_rows(mr, c, stride, n, p, o, f, rf, s);                                                              \
    }                                                                                                             \
    static __attribute__((noinline)) void sum_##mr(const uint8_t *c, i64 stride, i64 n, const vi *p,            \
                                                   const int32_t *o, const float *f, const float *rf, vi *s) {    \
        (void)o, (void)f, (void)rf;                                                                               \
        int8_rows(mr, c, stride, n, p, 0, 0, 0, s);                                                               \
    }
INT8_INSTANCE(1)
INT8_INSTANCE(2)
INT8_INSTANCE(4)
#if MR == 8
INT8_INSTANCE(8)
static const int8_fn MULTIPLY[] = {multiply_1, multiply_2, multiply_4, multiply_8};
static const int8_fn SUM[] = {sum_1, sum_2, sum_4, sum_8};
enum { LARGEST = 3 };
#else
static const int8_fn MULTIPLY[] = {multiply_1, multiply_2, multiply_4};
static const int8_fn SUM[] = {sum_1, sum_2, sum_4};
enum { LARGEST = 2 };
#endif

/* Rows by MR, and what is left over by halves. */
INL void in_tiles(const int8_fn *table, const uint8_t *codes, i64 stride, i64 n, i64 n_groups, const int8_t *panel,
                  const int32_t *offsets, const float *scales, const float *row_scales, void *s) {
    i64 k = 0;
    for (int size = LARGEST; size >= 0; size--)
        for (; n - k >= (i64)1 << size; k += (i64)1 << size)
            table[size](codes + k * stride, stride, n_groups, (const vi *)panel, offsets, scales,
                        row_scales ? row_scales + k : 0, (vi *)s + k * NV);
}

static void int8_sum(const uint8_t *codes, i64 stride, i64 n, i64 n_groups, const int8_t *panel, int32_t *s) {
    in_tiles(SUM, codes, stride, n, n_groups, panel, 0, 0, 0, s);
}

static void int8_multiply(const uint8_t *codes, i64 stride, i64 n, i64 n_groups, const int8_t *panel,
                          const int32_t *offsets, const float *scales, const float *row_scales, float *s) {
    in_tiles(MULTIPLY, codes, stride, n, n_groups, panel, offsets, scales, row_scales, s);
}

/* VL numbers, zeros after the first n. */
INL vf some(const float *row, i64 n) {
    vf x = {0};
    memcpy(&x, row, (n < VL ? n : VL) * sizeof(float));
    return x;
}

static void int8_quantise(const float *row, i64 depth, uint8_t *codes, float *scale) {
    vf most = {0}, bad = {0};
    i64 whole = depth / VL * VL;
    for (i64 d = 0; d < depth; d += VL) {
        vf x;
        if (d < whole) memcpy(&x, row + d, sizeof x);
        else x = some(row + d, depth - d);
        most = larger((vf)((vi)x & spread_int(INT32_MAX)), most);
        bad += x - x; /* NaN from a NaN or an infinity on */
    }
    float largest = 0, sign = 0;
    for (int i = 0; i < VL; i++) {
        largest = most[i] > largest ? most[i] : largest;
        sign += bad[i];
    }
    float factor = largest < 0x1p-100f ? 0 : 127.f / largest; /* such a row counts as zeros */
    *scale = (largest < 0x1p-100f ? 0 : largest / 127.f) + sign;
    for (i64 d = 0; d < depth; d += VL) {
        vf x;
        if (d < whole) memcpy(&x, row + d, sizeof x);
        else x = some(row + d, depth - d);
        vb bytes = __builtin_convertvector(nearest_int(x * factor) + 128, vb);
        memcpy(codes + d, &bytes, sizeof bytes);
    }
}

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
const int8_isa PASTE(int8_, ISA) = {TEXT(ISA), TEXT(TILE), LANES, int8_quantise, int8_sum, int8_multiply};
