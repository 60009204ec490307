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
    vi count = {0};
    i64 total = 0;
    for (i64 v = 0; v < n_vectors; v++) count -= distances[v] <= spread(bound);
    for (int i = 0; i < VL; i++) total += count[i];
    return total;
}

/* A bound that at least topk of n distances keep, and at most `most`, unless too many are equal. Their bits have their
 * order: halved in between. */
INL float bound_within(const vf *distances, i64 n_vectors, i64 n, i64 topk, i64 most) {
    const float largest = 3.4028234663852886e38f;
    int32_t low = -1, high;
    float bound = largest;
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

INL void nearby_of(const float *panels, i64 n, i64 depth, const float *center, const int64_t *index,
                   int64_t first_row, float *s, tile_best *best, i64 lane) {
    vf *distances = (vf *)s;
    i64 n_vectors = (n + VL - 1) / VL, room = best->room;
    for (i64 p = 0; p * NV < n_vectors; p++)
        for (i64 j = 0; j < NV && p * NV + j < n_vectors; j++)
            distances[p * NV + j] = -larger(spread(-3.4028234663852886e38f),
                                            -square_distance((const vf *)panels + p * depth * NV, j, depth, center));
    for (i64 i = n; i < n_vectors * VL; i++) s[i] = INFINITY; /* lanes without a point */
    if (best->counts[lane] == 0 && n > room) { /* nothing is known yet, and most points are none of the nearest */
        float bound = bound_within(distances, n_vectors, n, best->topk, room - 1);
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
    if (depth == 3) /* coordinates unrolled */
        nearby_of(panels, n, 3, center, index, first_row, s, best, lane);
    else
        nearby_of(panels, n, depth, center, index, first_row, s, best, lane);
}

INL i64 farthest_of(const float *panels, i64 n_panels, i64 depth, const float *center, float *nearest) {
    vf top[NV];
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
            vf distance = square_distance(panel, j, depth, center);
            vf x = -larger(-distance, -own[j]); /* a lane without a point keeps its own -1 */
            vi is_farther = x > top[j];
            own[j] = x;
            top[j] = blend(is_farther, x, top[j]);
            at[j] = (is_farther & spread_int((int32_t)p)) | (~is_farther & at[j]);
        }
    }
    float most = -2.f;
    i64 place = 0;
    for (int j = 0; j < NV; j++)
        for (int i = 0; i < VL; i++) {
            i64 here = (i64)at[j][i] * LANES + j * VL + i;
            if (top[j][i] > most || (top[j][i] == most && here < place)) {
                most = top[j][i];
                place = here;
            }
        }
    return place;
}

static i64 tile_farthest(const float *panels, i64 n_panels, i64 depth, const float *center, float *nearest) {
    if (depth == 3) return farthest_of(panels, n_panels, 3, center, nearest); /* coordinates unrolled */
    return farthest_of(panels, n_panels, depth, center, nearest);
}
