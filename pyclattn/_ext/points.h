/* Square distances, in float32 as defined: coordinates in their order, each square and each sum rounded. */

/* A product that a sum must not fuse with: the bits would differ between instruction sets. */
#if defined(__x86_64__) || defined(__i386__)
#if VB == 64
#define ROUNDED(x) __asm__("" : "+v"(x))
#else
#define ROUNDED(x) __asm__("" : "+x"(x))
#endif
#elif defined(__aarch64__)
#define ROUNDED(x) __asm__("" : "+w"(x))
#else
#define ROUNDED(x) __asm__("" : "+m"(x))
#endif

/* Of the lanes of a panel's vector j to a point. */
INL vf square_distance(const vf *panel, i64 j, i64 depth, const float *point) {
    vf total = {0};
    for (i64 d = 0; d < depth; d++) {
        vf difference = panel[d * NV + j] - point[d], square = difference * difference;
        ROUNDED(square);
        total += square;
    }
    return total;
}

/* How many of some distances are at most a bound. */
INL i64 n_within(const vf *distances, i64 n_vectors, float bound) {
    i64 beyond = 0;
    for (i64 v = 0; v < n_vectors; v++) beyond += __builtin_popcount(above(distances[v], spread(bound)));
    return n_vectors * VL - beyond;
}

/* A bound that at least topk of the distances keep, and at most `most` unless some are equal. Their bits have their
 * order: halved in between. */
INL float bound_within(const vf *distances, i64 n_vectors, i64 topk, i64 most) {
    const float largest = 3.4028234663852886e38f;
    int32_t low = -1, high;
    float bound = largest;
    i64 n = n_vectors * VL;
    memcpy(&high, &largest, 4);
    while (n > most && high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        float trial;
        memcpy(&trial, &middle, 4);
        i64 count = n_within(distances, n_vectors, trial);
        if (count < topk) {
            low = middle;
        } else {
            high = middle;
            bound = trial;
            n = count;
        }
    }
    return bound;
}

/* A bound that at least topk of the distances keep, and few more: the least of twice as many groups, dealt out in turn,
 * and a bound on these. */
INL float bound_by_groups(const vf *distances, i64 n_vectors, i64 topk, vf *least) {
    i64 n_groups = (2 * topk + VL - 1) / VL;
    if (n_groups > n_vectors) n_groups = n_vectors;
    for (i64 g = 0; g < n_groups; g++) {
        least[g] = distances[g];
        for (i64 v = g + n_groups; v < n_vectors; v += n_groups) least[g] = smaller(distances[v], least[g]);
    }
    return bound_within(least, n_groups, topk, topk + topk / 8);
}

INL void nearby_of(const float *panels, i64 n, i64 depth, const float *center, const int64_t *index,
                   int64_t first_row, float *s, tile_best *best, i64 lane) {
    vf *distances = (vf *)s;
    i64 n_vectors = (n + VL - 1) / VL, room = best->room;
    for (i64 p = 0; p * NV < n_vectors; p++)
        for (i64 j = 0; j < NV && p * NV + j < n_vectors; j++)
            distances[p * NV + j] = smaller(square_distance((const vf *)panels + p * depth * NV, j, depth, center),
                                            spread(3.4028234663852886e38f));
    for (i64 i = n; i < n_vectors * VL; i++) s[i] = INFINITY; /* lanes without a point */
    if (best->counts[lane] == 0 && n > room) { /* nothing is known yet, and most points are none of the nearest */
        float bound = bound_by_groups(distances, n_vectors, best->topk, distances + n_vectors);
        int32_t next;
        memcpy(&next, &bound, 4);
        next++; /* a score must exceed the threshold, and the bound itself is within */
        memcpy(&bound, &next, 4);
        best->threshold[lane] = -bound;
    }
    for (i64 v = 0; v < n_vectors; v++) {
        uint32_t hits = above(-distances[v], spread(best->threshold[lane]));
        for (; hits; hits &= hits - 1) {
            i64 k = v * VL + __builtin_ctz(hits), at = lane * room + best->counts[lane]++;
            best->scores[at] = -s[k];
            best->rows[at] = index ? index[k] : first_row + k;
            if (best->counts[lane] == room) tile_cut(best, lane);
        }
    }
}

static void tile_nearby(const float *panels, i64 n, i64 depth, const float *center, const int64_t *index,
                        int64_t first_row, float *s, tile_best *best, i64 lane) {
    if (depth == 3) { /* coordinates unrolled, and kept in registers */
        const float own[3] = {center[0], center[1], center[2]};
        nearby_of(panels, n, 3, own, index, first_row, s, best, lane);
    } else {
        nearby_of(panels, n, depth, center, index, first_row, s, best, lane);
    }
}

#define RUN 128 /* entries that are ordered by counting, which takes RUN^2 comparisons; longer lists by merging */

/* n <= RUN entries in their order, the first of equals first: each where as many are before it. */
static void order_run(const float *scores, const int64_t *rows, i64 n, float *to_scores, int64_t *to_rows) {
    float own[RUN] __attribute__((aligned(VB)));
    i64 n_vectors = (n + VL - 1) / VL;
    memcpy(own, scores, n * sizeof(float));
    for (i64 i = n; i < n_vectors * VL; i++) own[i] = -INFINITY;
    for (i64 i = 0; i < n; i++) {
        vf score = spread(own[i]);
        uint32_t earlier = (1u << i % VL) - 1;
        i64 v = 0, place = i - i % VL; /* of earlier vectors those that are not less, */
        for (; v < i / VL; v++) place -= __builtin_popcount(above(score, ((vf *)own)[v]));
        place += __builtin_popcount(earlier & ~above(score, ((vf *)own)[v]));
        place += __builtin_popcount(~earlier & above(((vf *)own)[v], score));
        for (v++; v < n_vectors; v++) place += __builtin_popcount(above(((vf *)own)[v], score));
        to_scores[place] = scores[i];
        to_rows[place] = rows[i];
    }
}

/* A lane's list in its order, the first of equals first; another lane is overwritten. Which of both holds it. */
static i64 tile_order(tile_best *best, i64 lane, i64 spare) {
    i64 n = best->counts[lane], room = best->room;
    for (i64 i = 0; i < n; i += RUN) {
        i64 from = lane * room + i, to = spare * room + i;
        order_run(best->scores + from, best->rows + from, n - i < RUN ? n - i : RUN, best->scores + to,
                  best->rows + to);
    }
    for (i64 width = RUN; width < n; width *= 2) {
        i64 other = lane;
        lane = spare;
        spare = other;
        const float *scores = best->scores + lane * room;
        for (i64 start = 0; start < n; start += 2 * width) {
            i64 a = start, middle = start + width < n ? start + width : n, b = middle;
            i64 stop = start + 2 * width < n ? start + 2 * width : n;
            for (i64 to = spare * room + start; a < middle || b < stop; to++) {
                i64 from = b >= stop || (a < middle && scores[a] >= scores[b]) ? a++ : b++;
                best->scores[to] = scores[from];
                best->rows[to] = best->rows[lane * room + from];
            }
        }
    }
    return spare;
}

INL i64 farthest_of(const float *panels, i64 n_panels, i64 depth, const float *center, float *nearest) {
    vf top[NV], highest = spread(-2.f);
    vi at[NV];
    for (int j = 0; j < NV; j++) {
        top[j] = spread(-2.f);
        at[j] = (vi){0};
    }
    for (i64 p = 0; p < n_panels; p++) {
        const vf *panel = (const vf *)panels + p * depth * NV;
        vf *own = (vf *)nearest + p * NV;
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) {
            vf x = smaller(square_distance(panel, j, depth, center), own[j]); /* a lane without a point keeps its -1 */
            vi is_farther = x > top[j];
            own[j] = x;
            top[j] = larger(x, top[j]);
            at[j] = (is_farther & spread_int((int32_t)p)) | (~is_farther & at[j]);
        }
    }
    for (int j = 0; j < NV; j++) highest = larger(top[j], highest);
    float most = highest[0];
    for (int i = 1; i < VL; i++) most = highest[i] > most ? highest[i] : most;
    i64 place = INT64_MAX;
    for (int j = 0; j < NV; j++)
        for (int i = 0; i < VL; i++) {
            i64 here = (i64)at[j][i] * LANES + j * VL + i;
            if (top[j][i] == most && here < place) place = here;
        }
    return place;
}

static i64 tile_farthest(const float *panels, i64 n_panels, i64 depth, const float *center, float *nearest) {
    if (depth == 3) { /* coordinates unrolled, and kept in registers */
        const float own[3] = {center[0], center[1], center[2]};
        return farthest_of(panels, n_panels, 3, own, nearest);
    }
    return farthest_of(panels, n_panels, depth, center, nearest);
}
