/* What co-clustered attention does on a panel of query centroids, beside the two products. */

/* Lane i takes the rows whose score + key_scores[k] beats limits[i]; the others become 2^(s - top), and are listed
 * where they beat limits[LANES + i]. */
INL void part_rows(int nv, vf *s, i64 n, const float *key_scores, const float *limits, const vf *top,
                   int32_t first, tile_lists lists[2], vf *sum) {
    const vf *taking = (const vf *)limits, *listing = taking + NV;
    vf total[NV];
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) total[j] = (vf){0};
#pragma GCC unroll 1
    for (i64 k = 0; k < n; k++)
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) {
            vf x = s[k * NV + j], error = x + key_scores[k];
            vf e = blend(error > taking[j], (vf){0}, exp2_neg(x - top[j]));
            for (uint32_t hits = above(error, listing[j]), all = above(error, taking[j]); hits; hits &= hits - 1) {
                int i = __builtin_ctz(hits);
                i64 lane = j * VL + i;
                tile_lists *own = lists + !(all >> i & 1);
                i64 at = lane * own->room + own->counts[lane]++;
                own->rows[at] = first + (int32_t)k;
                own->scores[at] = ((const float *)s)[k * LANES + lane];
            }
            s[k * NV + j] = e;
            total[j] += e;
        }
#pragma GCC unroll 8
    for (int j = 0; j < nv; j++) sum[j] = total[j];
}

static void tile_part(float *s, i64 n, const float *group_peaks, const float *key_scores, i64 vectors,
                      const float *limits, int32_t first, tile_lists lists[2], float *m, float *mass,
                      float *alpha) {
    vf *top = (vf *)m, *l = (vf *)mass, *a = (vf *)alpha, sum[NV];
    const vf *peaks = (const vf *)group_peaks;
    for (i64 j = 0; j < vectors; j++) {
        vf peak = top[j];
        for (i64 g = 0; g < (n + MR - 1) / MR; g++) peak = larger(peaks[g * NV + j], peak);
        a[j] = exp2_neg(top[j] - peak);
        top[j] = peak;
    }
#if NV == 3
    if (vectors == 3) part_rows(3, (vf *)s, n, key_scores, limits, top, first, lists, sum);
    else
#endif
    if (vectors == 2) part_rows(2, (vf *)s, n, key_scores, limits, top, first, lists, sum);
    else part_rows(1, (vf *)s, n, key_scores, limits, top, first, lists, sum);
    for (i64 j = 0; j < vectors; j++) l[j] = l[j] * a[j] + sum[j];
}

/* o holds sums over a lane's share of a cluster of keys, mass theirs, of 2^(score - top). Row `depth` of o, the key's
 * own logit, becomes such that the mean row's score is log2(mass) + top at the centroid: divided by mass later on. */
static void tile_tail(float *o, const float *panel, i64 depth, i64 vectors, const float *mass, const float *top) {
    for (i64 j = 0; j < vectors; j++) {
        vf dot = {0}, m = ((const vf *)mass)[j];
        vf logs;
        for (i64 d = 0; d < depth; d++) dot += ((vf *)o)[d * NV + j] * ((const vf *)panel)[d * NV + j];
        for (int i = 0; i < VL; i++) logs[i] = m[i] > 0.f ? log2f(m[i]) : 0.f;
        ((vf *)o)[depth * NV + j] = (logs + ((const vf *)top)[j]) * m - dot;
    }
}

/* A sorted row's distance to a mean row: of the key, times weight, one coordinate a lane of panels that lie panel_stride
 * floats apart; of the value as it is; and the key's weighted squares are added to spreads. */
static void tile_lean(const float *row, const float *mean, i64 depth, i64 width, float weight, float *restrict key,
                      i64 panel_stride, float *restrict value, float *restrict spreads) {
    for (i64 first = 0; first < depth; first += LANES, key += panel_stride)
        for (i64 i = first; i < depth && i < first + LANES; i++) {
            float x = row[i] - mean[i], y = x * weight;
            key[i - first] = y;
            spreads[i] += x * y;
        }
    for (i64 e = 0; e < width; e++) value[e] = row[depth + 1 + e] - mean[depth + 1 + e];
}

/* u, scores on the axes, becomes the weights of the slopes: (u - center) ln 2, damped by 1 + sum u^2 spread, or that sum's
 * square, times the mass of the tail, tail_mass, which was summed beneath the maximum tail_m. */
static void tile_tilt(float *u, i64 rank, const float *center, const float *spreads, i64 vectors,
                      const float *tail_m, const float *tail_mass, const float *m, int is_squared) {
    for (i64 j = 0; j < vectors; j++) {
        vf size = {0}, *x = (vf *)u + j;
        for (i64 r = 0; r < rank; r++) {
            x[r * NV] = (x[r * NV] - center[r]) * 0.693147180559945f;
            size += x[r * NV] * (x[r * NV] * spreads[r]);  /* the square alone may be too large */
        }
        if (is_squared) size *= size;
        vf share = ((const vf *)tail_mass)[j] * exp2_neg(((const vf *)tail_m)[j] - ((const vf *)m)[j]) / (size + 1.f);
        for (i64 r = 0; r < rank; r++) x[r * NV] *= share;
    }
}
