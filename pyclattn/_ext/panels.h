/* Everything on a panel but the products: loading, softmax, masks, selection, hashing, storing; and the table. */
#include "lanes.h"
#if BFLOAT16
#include "pairs.h"
#else
#include "singles.h"
#endif
#include "products.h"
#include "scattered.h"

#define LOG2E 1.44269504088896341f
#include "dense.h"

/* Whole blocks of VL coordinates of up to VL rows; what is left of either goes by blocks of four. */
static void tile_load(const float *rows, i64 stride, const int64_t *index, i64 n, i64 depth, float factor,
                      float *panel) {
    i64 used = (n + VL - 1) / VL * VL, quads = n / 4 * 4, whole = depth / VL * VL, fours = depth / 4 * 4;
    for (i64 i = 0; whole && i < n; i += VL) {
        const float *row[VL];
        i64 there = n - i < VL ? n - i : VL, ahead = n - i - there < VL ? n - i - there : VL;
        for (i64 r = 0; r < there; r++) row[r] = rows + (index ? index[i + r] : i + r) * stride;
        for (i64 d = 0; d < whole; d += VL) {
            vf block[VL];
            for (i64 r = d / VL; index && r < ahead; r += whole / VL)
                tile_prefetch(rows + index[i + VL + r] * stride, depth);
#pragma GCC unroll 16
            for (int r = 0; r < VL; r++) {
                block[r] = (vf){0};
                if (r < there) block[r] = *(const loose_vf *)(row[r] + d) * factor;
            }
            transpose(block);
#pragma GCC unroll 16
            for (int r = 0; r < VL; r++) *(vf *)(panel + (d + r) * LANES + i) = block[r];
        }
    }
    for (i64 i = 0; whole < depth && i < quads; i += 4) {
        const float *row[4];
        for (int r = 0; r < 4; r++) row[r] = rows + (index ? index[i + r] : i + r) * stride;
        for (i64 d = whole; d < fours; d += 4) {
            v4 block[4];
            for (int r = 0; r < 4; r++) block[r] = *(const v4 *)(row[r] + d) * factor;
            transpose4(block);
            for (int r = 0; r < 4; r++) *(v4 *)(panel + (d + r) * LANES + i) = block[r];
        }
        for (i64 d = fours; d < depth; d++)
            for (int r = 0; r < 4; r++) panel[d * LANES + i + r] = row[r][d] * factor;
    }
    for (i64 i = quads; whole < depth && i < used; i++) {
        const float *row = i < n ? rows + (index ? index[i] : i) * stride : 0;
        for (i64 d = whole; d < depth; d++) panel[d * LANES + i] = row ? row[d] * factor : 0.f;
    }
#if BFLOAT16
    tile_pack_columns(panel, LANES, 0, depth, LANES, panel);
#endif
}

static void tile_store(const float *o, const float *l, i64 n, i64 width, float weight, const float *base, float *out,
                       i64 stride, const int64_t *index) {
    vf shares[NV] = {{0}};
    float *share = (float *)shares;
    for (i64 i = 0; i < n; i++) share[i] = l[i] == 0.f ? 0.f : weight / l[i];
    i64 quads = n / 4 * 4, whole = width / VL * VL, fours = width / 4 * 4;
    for (i64 i = 0; whole && i < n; i += VL) {
        float *row[VL];
        i64 there = n - i < VL ? n - i : VL;
        for (i64 r = 0; r < there; r++) row[r] = out + (index ? index[i + r] : i + r) * stride;
        vf factor = shares[i / VL];
        for (i64 e = 0; e < whole; e += VL) {
            vf block[VL], added = {0};
            if (base) added = *(const loose_vf *)(base + e);
#pragma GCC unroll 16
            for (int r = 0; r < VL; r++) block[r] = *(const vf *)(o + (e + r) * LANES + i) * factor;
            transpose(block);
#pragma GCC unroll 16
            for (int r = 0; r < VL; r++)
                if (r < there) *(loose_vf *)(row[r] + e) = block[r] + added;
        }
    }
    for (i64 i = 0; whole < width && i < quads; i += 4) {
        float *row[4];
        for (int r = 0; r < 4; r++) row[r] = out + (index ? index[i + r] : i + r) * stride;
        v4 factor = *(const v4 *)(share + i);
        for (i64 e = whole; e < fours; e += 4) {
            v4 block[4], added = {0};
            if (base) added = *(const v4 *)(base + e);
            for (int r = 0; r < 4; r++) block[r] = *(const v4 *)(o + (e + r) * LANES + i) * factor;
            transpose4(block);
            for (int r = 0; r < 4; r++) *(v4 *)(row[r] + e) = block[r] + added;
        }
        for (i64 e = fours; e < width; e++)
            for (int r = 0; r < 4; r++) row[r][e] = o[e * LANES + i + r] * share[i + r] + (base ? base[e] : 0.f);
    }
    for (i64 i = quads; whole < width && i < n; i++) {
        float *row = out + (index ? index[i] : i) * stride;
        for (i64 e = whole; e < width; e++) row[e] = o[e * LANES + i] * share[i] + (base ? base[e] : 0.f);
    }
}

/* The weights of a block sum up from zero and join l at the end: shorter chains of roundings. */
INL void soften_to(vf *s, i64 n, const vf *peak, i64 vectors, float *m, float *l, float *alpha, int is_masked) {
    vf *mm = (vf *)m, *ll = (vf *)l, *aa = (vf *)alpha, sum[NV];
    for (i64 j = 0; j < vectors; j++) {
        aa[j] = exp2_neg(mm[j] - peak[j]);
        mm[j] = peak[j];
    }
#if NV == 3
    if (vectors == 3) soften_block(3, s, n, mm, sum, is_masked);
    else
#endif
    if (vectors == 2) soften_block(2, s, n, mm, sum, is_masked);
    else soften_block(1, s, n, mm, sum, is_masked);
    for (i64 j = 0; j < vectors; j++) ll[j] = ll[j] * aa[j] + sum[j];
}

static void tile_soften(float *s, i64 n, const float *group_peaks, i64 vectors, float *m, float *l, float *alpha) {
    const vf *peaks = (const vf *)group_peaks;
    vf top[NV];
    for (i64 j = 0; j < vectors; j++) {
        top[j] = ((vf *)m)[j];
        for (i64 g = 0; g < (n + MR - 1) / MR; g++) top[j] = larger(peaks[g * NV + j], top[j]);
    }
    soften_to((vf *)s, n, top, vectors, m, l, alpha, 0);
}

static void tile_soften_masked(float *s, i64 n, i64 vectors, float *m, float *l, float *alpha) {
    vf top[NV];
    for (i64 j = 0; j < vectors; j++) {
        top[j] = ((vf *)m)[j];
        for (i64 k = 0; k < n; k++) top[j] = larger(((vf *)s)[k * NV + j], top[j]);
    }
    soften_to((vf *)s, n, top, vectors, m, l, alpha, 1);
}

static void tile_mask_future(float *s, i64 n, i64 vectors, const int64_t *positions, int64_t first_key,
                             const int32_t *lane_positions, int64_t origin) {
    for (i64 k = 0; k < n; k++) {
        int64_t key = (positions ? positions[k] : first_key + k) - origin;
        vi least = spread_int(key > INT32_MAX ? INT32_MAX : key < INT32_MIN ? INT32_MIN : (int32_t)key);
        vf *row = (vf *)s + k * NV;
        for (i64 j = 0; j < vectors; j++)
            row[j] = blend(((const vi *)lane_positions)[j] < least, spread(TILE_MASKED), row[j]);
    }
}

#define SELECT4(mask, yes, no) ((v4)(((i4)(mask) & (i4)(yes)) | (~(i4)(mask) & (i4)(no))))

/* rows[r][k] is the bias of query i + r and key k: four queries by four keys at a time. What overflows is
 * bounded: a row of nothing but very low biases is still a softmax, and stays above the mask. */
static void add_four(float *s, i64 i, i64 n, const float *const rows[4]) {
    const v4 most = {2e38f, 2e38f, 2e38f, 2e38f};
    const v4 masked = {TILE_MASKED, TILE_MASKED, TILE_MASKED, TILE_MASKED};
    for (i64 k = 0; k < n; k += 4) {
        v4 block[4] = {{0}};
        if (k + 4 <= n)
            for (int r = 0; r < 4; r++) block[r] = *(const v4 *)(rows[r] + k);
        else
            for (int r = 0; r < 4; r++)
                for (int j = 0; j < 4; j++) block[r][j] = k + j < n ? rows[r][k + j] : 0.f;
        transpose4(block);
        for (int r = 0; r < 4 && k + r < n; r++) {
            v4 x = *(const v4 *)(s + (k + r) * LANES + i), y = x + block[r] * LOG2E;
            y = SELECT4(y < -most, -most, SELECT4(y > most, most, y));
            *(v4 *)(s + (k + r) * LANES + i) = SELECT4(block[r] == -INFINITY, masked, y);
        }
    }
}

static void add_to_all(float *s, i64 n, i64 vectors, const int64_t *positions, int64_t first_key, const float *bias,
                       i64 key_stride) {
    for (i64 k = 0; k < n; k++) {
        float b = bias[(positions ? positions[k] : first_key + k) * key_stride];
        for (i64 j = 0; j < vectors && b != 0.f; j++) {
            vf *x = (vf *)s + k * NV + j;
            vf y = larger(spread(-2e38f), *x + b * LOG2E);
            *x = b == -INFINITY ? spread(TILE_MASKED) : -larger(spread(-2e38f), -y);
        }
    }
}

static void tile_add_bias(float *s, i64 n, i64 n_queries, i64 vectors, const int64_t *positions, int64_t first_key,
                          const float *bias, i64 query_stride, i64 key_stride) {
    if (query_stride == 0) {
        add_to_all(s, n, vectors, positions, first_key, bias, key_stride);
        return;
    }
    float copies[4][TILE_KEYS];
    for (i64 i = 0; i < n_queries; i += 4) {
        const float *rows[4];
        for (int r = 0; r < 4; r++) {
            const float *row = bias + (i + r < n_queries ? i + r : i) * query_stride;
            rows[r] = row + first_key;
            if (!positions && key_stride == 1) continue;
            for (i64 k = 0; k < n; k++) copies[r][k] = row[(positions ? positions[k] : first_key + k) * key_stride];
            rows[r] = copies[r];
        }
        add_four(s, i, n, rows);
    }
}

static void tile_allow(float *s, i64 n, i64 n_queries, const int64_t *positions, int64_t first_key,
                       const uint8_t *allowed, i64 query_stride, i64 key_stride) {
    float copies[4][TILE_KEYS];
    const float *const rows[4] = {copies[0], copies[1], copies[2], copies[3]};
    for (i64 i = 0; i < n_queries; i += 4) {
        for (int r = 0; r < 4; r++) {
            const uint8_t *row = allowed + (i + r < n_queries ? i + r : i) * query_stride;
            if (!positions && key_stride == 1)
                for (i64 k = 0; k < n; k++) copies[r][k] = row[first_key + k] ? 0.f : -INFINITY;
            else
                for (i64 k = 0; k < n; k++)
                    copies[r][k] = row[(positions ? positions[k] : first_key + k) * key_stride] ? 0.f : -INFINITY;
        }
        add_four(s, i, n, rows);
    }
}

/* Floats as whole numbers in the same order. */
INL vi ordered(vi bits) { return bits ^ ((bits >> 31) & spread_int(INT32_MAX)); }

/* A bound that just topk of the n scores reach, or, of equal scores, more: found bit by bit from the top without a
 * branch on a score. */
static float bound_of_best(const float *scores, i64 n, i64 topk) {
    uint32_t found = 0; /* offset by 2^31, so that unsigned order is the floats' */
    for (int bit = 31; bit >= 0; bit--) {
        int32_t trial = (int32_t)((found | 1u << bit) ^ 0x80000000u);
        vi count = {0};
        for (i64 i = 0; i < n; i += VL) count -= ordered(*(const vi *)(scores + i)) >= spread_int(trial);
        i64 total = 0;
        for (int i = 0; i < VL; i++) total += count[i];
        if (total >= topk) found |= 1u << bit;
        if (total == topk) break;
    }
    int32_t key = (int32_t)(found ^ 0x80000000u), bits = key ^ ((key >> 31) & INT32_MAX);
    float score;
    memcpy(&score, &bits, 4);
    return score;
}

static void tile_cut(tile_best *best, i64 lane) {
    float *scores = best->scores + lane * best->room;
    int64_t *rows = best->rows + lane * best->room;
    i64 n = best->counts[lane], topk = best->topk, kept = 0, n_above = 0;
    if (n <= topk) return;
    for (i64 i = n; i < (n + VL - 1) / VL * VL; i++) scores[i] = -INFINITY;
    float bound = bound_of_best(scores, (n + VL - 1) / VL * VL, topk);
    for (i64 i = 0; i < n; i++) n_above += scores[i] > bound;
    for (i64 i = 0, ties = topk - n_above; i < n; i++) {
        float score = scores[i];
        i64 is_tie = score == bound, is_kept = (score > bound) | (is_tie & (ties > 0));
        scores[kept] = score;
        rows[kept] = rows[i];
        kept += is_kept;
        ties -= is_tie;
    }
    best->counts[lane] = kept;
    best->threshold[lane] = bound;
}

static void tile_pick(const float *s, const float *group_peaks, i64 n, i64 vectors, const int64_t *index,
                      int64_t first_row, tile_best *best) {
    const vf *peaks = (const vf *)group_peaks, *threshold = (const vf *)best->threshold;
    for (i64 g = 0; g * MR < n; g++)
        for (i64 j = 0; j < vectors; j++) {
            if (!above(peaks[g * NV + j], threshold[j])) continue; /* nothing new in these MR keys */
            i64 last = (g + 1) * MR < n ? (g + 1) * MR : n;
            for (i64 k = g * MR; k < last; k++) {
                uint32_t hits = above(((const vf *)s)[k * NV + j], threshold[j]);
                for (; hits; hits &= hits - 1) {
                    i64 lane = j * VL + __builtin_ctz(hits);
                    i64 at = lane * best->room + best->counts[lane]++;
                    best->scores[at] = s[k * LANES + lane];
                    best->rows[at] = index ? index[k] : first_row + k;
                    if (best->counts[lane] == best->room) tile_cut(best, lane);
                }
            }
        }
}

static void tile_sign(const float *s, i64 n_bits, const float *panel, i64 depth, i64 vectors,
                      const float *thresholds, float per_square, float least, uint64_t *codes, uint32_t *unsure) {
    for (i64 j = 0; j < vectors; j++) {
        vi half[2] = {{0}, {0}}, doubt = {0};
        vf square = {0};
        for (i64 d = 0; d < depth; d++) {
            vf x = ((const vf *)panel)[d * NV + j];
            square += x * x;
        }
        vf room = square * per_square + least;
        for (i64 b = 0; b < n_bits; b++) {
            vf x = ((const vf *)s)[b * NV + j] - thresholds[b];
            half[b / 32] |= (x > (vf){0}) & spread_int((int32_t)(1u << b % 32));
            doubt |= x * x <= room;
        }
        for (i64 i = 0; i < VL; i++) {
            codes[j * VL + i] = (uint64_t)(uint32_t)half[0][i] | (uint64_t)(uint32_t)half[1][i] << 32;
            unsure[j * VL + i] = (uint32_t)doubt[i];
        }
    }
}

static void tile_nearest(const float *s, i64 n, i64 vectors, const float *offsets, int32_t first, float *best,
                         int32_t *labels) {
    for (i64 j = 0; j < vectors; j++) {
        vf top = ((vf *)best)[j];
        vi label = ((vi *)labels)[j];
        for (i64 k = 0; k < n; k++) {
            vf x = ((const vf *)s)[k * NV + j] - offsets[k];
            vi better = x > top;
            top = larger(x, top); /* a shorter chain than a blend */
            label = (better & spread_int(first + (int32_t)k)) | (~better & label);
        }
        ((vf *)best)[j] = top;
        ((vi *)labels)[j] = label;
    }
}

#include "tails.h"
#include "cast.h"
#include "centroids.h"
#include "points.h"
#include "sums.h"
#include "eigen.h"

_Static_assert(TILE_PANEL % LANES == 0, "work is cut into whole panels");

#define TEXT(x) #x
#define NAME(x) TEXT(x)
#define JOIN(a, b) a##b
#define TABLE_NAME(isa) JOIN(tile_, isa)
const tile_isa TABLE_NAME(ISA) = {
    NAME(ISA), LANES, VL, MR, PAIR, 2.0 * PAIR * MR * LANES,
    tile_load, tile_pack_rows, tile_pack_columns, tile_score, tile_soften, tile_soften_masked, tile_accumulate, tile_store, tile_mask_future,
    tile_add_bias, tile_allow, tile_pick, tile_cut, tile_sign, tile_nearest, tile_finish,
    tile_part, tile_tail, tile_tilt, tile_share, tile_nearby, tile_farthest,
    tile_laplace, tile_keep, tile_temper, tile_add_shares, tile_gate, tile_lean, tile_order,
    tile_score_pairs, tile_share_pairs, tile_sum_pairs,
    tile_floor, tile_next_above, tile_dots, tile_add_rows, tile_assign, tile_sum_rows, tile_add_squares,
    tile_take_off, tile_weigh_ranks, tile_eigen, tile_score_scattered, tile_accumulate_scattered, tile_fma_loop,
};
