/* What a compiled instruction set offers: one table of functions over panels, chosen at run time (isa.pyx).
 *
 * A panel holds up to `lanes` queries, one a lane: panel[d * lanes + i] is coordinate d of query i. Scores of a block
 * of keys lie the same way: s[k * lanes + i]. So the softmax is element-wise, keys and values are read where they lie,
 * as scalars spread over the lanes, and only the queries are transposed. `vectors` says how many vectors of the panel
 * are in use. Scores are logits in base 2: the panel is loaded times scale * log2(e).
 */
#ifndef PYCLATTN_TILE_H
#define PYCLATTN_TILE_H
#include <stdint.h>

/* Counts, strides, positions: 64 bits wherever this is compiled (a long has 32 on Windows). */
typedef int64_t i64;
#include <string.h>

#define TILE_KEYS 128 /* keys of a block: 128 x 64 floats = 32 kB each of keys and values; 2 % faster than 256 */
#define TILE_PANEL 48 /* lanes of the widest panel, whole panels of every other: `pyclattn.arrays.PANEL` */
#define TILE_MASKED -3.0e38f  /* a score that does not count; finite, so that no arithmetic meets an infinity */

/* The activations of a dense layer, in the order of their names in dense.pyx. */
enum {
    TILE_NO_ACTIVATION, TILE_RELU, TILE_GELU, TILE_GELU_TANH, TILE_QUICK_GELU, TILE_SILU, TILE_SIGMOID,
    TILE_ROUGH_GELU = 32, /* of products whose terms were rounded to 8 bits */
    TILE_FAR = 64 /* no activation, and past the cache where places are aligned: `tile_fence` ends such writing */
};

/* The best keys of each lane so far. Candidates are appended in the order of their rows; a full list is cut down to
 * its topk best, whose least score is the threshold from then on. */
typedef struct {
    i64 topk, room;  /* room: entries of a list, a multiple of 16 above topk */
    float *scores;    /* [lanes][room] */
    int64_t *rows;    /* [lanes][room] */
    i64 *counts;     /* [lanes] */
    float *threshold; /* [lanes] */
} tile_best;

/* Rows listed by each lane, in order, and their scores; room for every row. */
typedef struct {
    i64 room;
    int32_t *rows; /* [lanes][room] */
    float *scores; /* [lanes][room] */
    i64 *counts;   /* [lanes] */
} tile_lists;

typedef struct {
    const char *name;
    i64 lanes;        /* queries of a full panel */
    i64 vector;       /* queries of one vector */
    i64 group;        /* keys that share one entry of group_peaks */
    i64 pair;         /* terms of a word: 1 float32, or 2 bfloat16 (pairs.h) */
    double loop_flops; /* of one round of fma_loop */

    /* panel <- factor * rows[index[i] or i]; lanes from n to the end of the last vector become 0 */
    void (*load)(const float *rows, i64 stride, const int64_t *index, i64 n, i64 depth, float factor, float *panel);
    /* packed <- rows[index[k] or k] as words, side by side: of terms in a row, as `score` takes keys, or of terms one
     * below the other, as `accumulate` takes values; of float32 a copy. A table of pairs takes nothing but packed rows
     * as keys and values */
    void (*pack_rows)(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, float *packed);
    void (*pack_columns)(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, float *packed);
    /* s[k] = keys[k] . panel; group_peaks[g] = the largest of its group's scores (NaN is passed over) */
    void (*score)(const float *keys, i64 stride, i64 n, i64 depth, const float *panel, i64 vectors, float *s,
                  float *group_peaks);
    /* s <- 2^(s - m) with m the running maximum; l <- l alpha + sum; alpha = 2^(old m - m) */
    void (*soften)(float *s, i64 n, const float *group_peaks, i64 vectors, float *m, float *l, float *alpha);
    /* the same, where masked scores become 0 */
    void (*soften_masked)(float *s, i64 n, i64 vectors, float *m, float *l, float *alpha);
    /* o[e] <- o[e] alpha + sum over k of values[k][e] s[k] */
    void (*accumulate)(const float *values, i64 stride, i64 n, i64 width, const float *s, i64 vectors,
                       const float *alpha, float *o);
    /* out[index[i] or i] = o / l * weight + base (base may be NULL); a lane with l = 0 gives base alone */
    void (*store)(const float *o, const float *l, i64 n, i64 width, float weight, const float *base, float *out,
                  i64 stride, const int64_t *index);
    /* mask scores of keys after their query: (positions[k] or first_key + k) > origin + lane_positions[i] */
    void (*mask_future)(float *s, i64 n, i64 vectors, const int64_t *positions, int64_t first_key,
                        const int32_t *lane_positions, int64_t origin);
    /* s += bias * log2(e), -inf masks; bias of query i and key k at i * query_stride + column(k) * key_stride */
    void (*add_bias)(float *s, i64 n, i64 n_queries, i64 vectors, const int64_t *positions, int64_t first_key,
                     const float *bias, i64 query_stride, i64 key_stride);
    /* mask scores where allowed is 0 */
    void (*allow)(float *s, i64 n, i64 n_queries, const int64_t *positions, int64_t first_key,
                  const uint8_t *allowed, i64 query_stride, i64 key_stride);
    /* append the scores that beat their lane's threshold; row of key k: index[k] or first_row + k */
    void (*pick)(const float *s, const float *group_peaks, i64 n, i64 vectors, const int64_t *index,
                 int64_t first_row, tile_best *best);
    /* cut a lane's list down to its topk best, ties to the first */
    void (*cut)(tile_best *best, i64 lane);
    /* codes: bit b of lane i is s[b] > thresholds[b]; unsure[i]: some difference is so small beside the row's length
     * that rounding may have turned its sign, (s[b] - thresholds[b])^2 <= per_square |row|^2 + least */
    void (*sign)(const float *s, i64 n_bits, const float *panel, i64 depth, i64 vectors, const float *thresholds,
                 float per_square, float least, uint64_t *codes, uint32_t *unsure);
    /* running argmax over keys of s[k] - offsets[k], ties to the first; label counts from first */
    void (*nearest)(const float *s, i64 n, i64 vectors, const float *offsets, int32_t first, float *best,
                    int32_t *labels);
    /* a dense layer's way out: out[k][c] = activation(s[k][c] + bias[c]) + residual[k][c] for c < width; bias and
     * residual may be NULL, and residual may be out */
    void (*finish)(const float *s, i64 n, i64 width, const float *bias, int activation, const float *residual,
                   i64 residual_stride, float *out, i64 stride);
    /* what co-clustered attention needs (tails.h): keys parted into taken ones and the tail, which is summed as in
     * soften, and of which those above the second limits are listed; the tail's mean row; the weights of its slopes */
    void (*part)(float *s, i64 n, const float *group_peaks, const float *key_scores, i64 vectors,
                 const float *limits, int32_t first, tile_lists lists[2], float *m, float *mass, float *alpha);
    void (*tail)(float *o, const float *panel, i64 depth, i64 vectors, const float *mass, const float *top);
    void (*tilt)(float *u, i64 rank, const float *center, const float *spreads, i64 vectors, const float *tail_m,
                 const float *tail_mass, const float *m, int is_squared);
    /* what centroid attention needs (centroids.h): each row of scores, over n_lanes lanes of panels panel_stride
     * floats apart, becomes 2^(s - its largest), idle lanes 0; totals[k] = the sum of row k */
    void (*share)(float *s, i64 panel_stride, i64 n, i64 n_lanes, float *totals);
    /* square distances (points.h) of n points, lanes of panels, to a center: appended, negative, to list `lane` where
     * they beat its threshold; row of point k: index[k] or first_row + k; room in s for all lanes */
    void (*nearby)(const float *panels, i64 n, i64 depth, const float *center, const int64_t *index,
                   int64_t first_row, float *s, tile_best *best, i64 lane);
    /* nearest <- min(nearest, square distance to the center), of whole panels; the first place of the largest */
    i64 (*farthest)(const float *panels, i64 n_panels, i64 depth, const float *center, float *nearest);
    /* what CAST needs (cast.h): s <- the Laplace attention function of s; total[k] += s[k] * factor */
    void (*laplace)(float *s, i64 n, i64 vectors);
    /* n rows of n_lanes logits to where they are kept, past the cache where rows are aligned */
    void (*keep)(const float *s, i64 n, i64 n_lanes, float *kept, i64 stride);
    /* s <- n rows of n_lanes logits, each lane times its gain, and their peaks; s itself may be the logits */
    void (*temper)(const float *logits, i64 stride, i64 n, i64 n_lanes, const float *gains, float *s,
                   float *group_peaks);
    void (*add_shares)(const float *s, i64 n, i64 vectors, const float *factor, float *total);
    /* of a panel's lanes: sigmoid(x), 1 + log(1 + e^x) and 1 + log(1 + e^-x) */
    void (*gate)(const float *gate, float *shares, float *of_query, float *of_key);
    /* co-clustered attention again: a row's share in a slope */
    void (*lean)(const float *row, const float *mean, i64 depth, i64 width, float weight, float *key, i64 panel_stride,
                 float *value, float *spreads);
    /* points again: a lane's list, the best first, of equals the first; which list, `lane` or `spare`, holds it */
    i64 (*order)(tile_best *best, i64 lane, i64 spare);
    /* centroid attention again, over pairs: s[k] = factor * query . keys[rows[k]], any number where there is no row
     * (< 0); scores become shares of their group (< 0: none, 0), with room for a number of each kind for each group;
     * out = the sum of weights[k] values[rows[k]], where a row of weight 0 is not read */
    void (*score_pairs)(const float *query, const float *keys, i64 stride, const int64_t *rows, i64 n, i64 depth,
                        float factor, float *s);
    void (*share_pairs)(float *s, const int64_t *groups, i64 n, i64 n_groups, float *peaks, double *totals);
    void (*sum_pairs)(const float *values, i64 stride, const int64_t *rows, const float *weights, i64 n, i64 width,
                      float *out);
    /* CAST again: s <- at least `least`, where it is NaN, too; the first place from `at` on above the threshold, or n;
     * dots[k] = rows[k] . other; sum <- sum alpha + sum over k of rows[k] weights[k * step] */
    void (*floor)(float *s, i64 n, i64 vectors, float least);
    i64 (*next_above)(const float *s, i64 at, i64 n, float threshold);
    void (*dots)(const float *rows, i64 stride, i64 n, i64 depth, const float *other, float *dots);
    void (*add_rows)(const float *rows, i64 stride, i64 n, i64 width, const float *weights, i64 step, float alpha,
                     float *sum);
    /* k-means: a running argmax over keys of keys[k] . panel - offsets[k], ties to the first */
    void (*assign)(const float *keys, i64 stride, i64 n, i64 depth, const float *panel, i64 vectors,
                   const float *offsets, float *best, int32_t *labels);
    /* totals += rows[index[k] or k]; squares, if not NULL, += their squares. sums[k] += |rows[k] - center|^2.
     * s[k] -= center, and squares += (s[k])^2, sums[k] += |s[k]|^2 over the lanes */
    void (*sum_rows)(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, double *totals,
                     double *squares);
    void (*add_squares)(const float *rows, i64 stride, i64 n, i64 width, const float *center, double *sums);
    void (*take_off)(float *s, i64 n, i64 vectors, const float *center, float *squares, double *sums);
    /* weights[(rank - first) >> shift] += weight for the rank (a whole number in the order of the floats) of each
     * (x + y) + offset, where it is from first to first + span */
    void (*weigh_ranks)(const float *x, const float *y, float offset, i64 n, uint32_t first, uint32_t span, int shift,
                        int64_t weight, int64_t *weights);
    /* eigenvalues of a symmetric matrix of n rows `stride` (whole vectors) apart, zeros behind them, the largest first,
     * and eigenvectors, the rows of z; a is lost, and work has room for three rows */
    void (*eigen)(double *a, i64 n, i64 stride, double *z, double *values, double *work);
    /* score and accumulate over rows that index names (words, of pairs), for n_lanes queries (scattered.h); s has room
     * for whole groups */
    void (*score_scattered)(const float *keys, i64 stride, const int32_t *index, i64 n, i64 depth, const float *panel,
                            i64 n_lanes, float *s, float *group_peaks);
    void (*accumulate_scattered)(const float *values, i64 stride, const int32_t *index, i64 n, i64 width,
                                 const float *s, i64 n_lanes, const float *alpha, float *o);
    /* a loop of nothing but multiply-adds, to measure the machine's peak */
    float (*fma_loop)(i64 rounds);
} tile_isa;

/* Rows at scattered places come late unless asked for early. */
static inline void tile_prefetch(const float *row, i64 width) {
    for (i64 d = 0; d < width; d += 16) __builtin_prefetch(row + d);
}

/* What is needed only after the tile's next block: into the second-level cache, since the first is the tile's. Asked for
 * into the first, the same rows are worth nothing. */
static inline void tile_prefetch_far(const float *row, i64 width) {
    for (i64 d = 0; d < width; d += 16) __builtin_prefetch(row + d, 0, 2);
}

/* What was written past the cache is there for other threads. */
static inline void tile_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Term k of a sum whose words lie `stride` apart. */
static inline float tile_term(const float *words, i64 stride, i64 pair, i64 k) {
    if (pair == 1) return words[k * stride];
    uint32_t word;
    memcpy(&word, words + k / 2 * stride, 4);
    word = k % 2 ? word & 0xffff0000u : word << 16;
    float x;
    memcpy(&x, &word, 4);
    return x;
}

/* Whether no term of n packed rows is NaN or infinite. */
static inline int tile_all_finite(const float *words, i64 stride, i64 pair, i64 n, i64 width) {
    const uint32_t upper = 0x7f800000, lower = pair == 2 ? 0x7f80 : UINT32_MAX;
    uint32_t bad = 0;
    for (i64 k = 0; k < (n + pair - 1) / pair; k++)
        for (i64 e = 0; e < width; e++) {
            uint32_t word;
            memcpy(&word, words + k * stride + e, 4);
            bad |= ((word & upper) == upper) | ((word & lower) == lower);
        }
    return !bad;
}

extern const tile_isa tile_baseline;
#if defined(__x86_64__) || defined(__i386__)
#define TILE_X86 1
extern const tile_isa tile_avx2, tile_avx512, tile_avx512_bf16;
#endif
#endif
