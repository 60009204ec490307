/* What centroid attention needs: a softmax over lanes, where all else here takes it over rows; and one over pairs of a
 * centroid and a neighbour. */

/* A weight below 2^-100 counts as 0, whatever its row. */
INL vf exp2_or_zero(vf x) { return blend(x < spread(-100.f), (vf){0}, exp2_neg(x)); }

static void tile_share(float *s, i64 panel_stride, i64 n, i64 n_lanes, float *totals) {
    i64 n_vectors = (n_lanes + VL - 1) / VL, idle = n_vectors * VL - n_lanes;
    for (i64 k = 0; k < n; k++) {
        float *row = s + k * LANES;
        /* vector v is the (v % NV)-th of panel v / NV; lanes without a centroid are at the end of the last */
        float *last = row + (n_vectors - 1) / NV * panel_stride + (n_vectors - 1) % NV * VL;
        for (i64 i = VL - idle; i < VL; i++) last[i] = TILE_MASKED;
        vf top = spread(TILE_MASKED), total = {0};
        for (i64 v = 0, left = n_vectors; left > 0; v += panel_stride, left -= NV)
            for (i64 j = 0; j < NV && j < left; j++) top = larger(((vf *)(row + v))[j], top);
        float peak = top[0], sum = 0;
        for (int i = 1; i < VL; i++) peak = top[i] > peak ? top[i] : peak;
        for (i64 v = 0, left = n_vectors; left > 0; v += panel_stride, left -= NV)
            for (i64 j = 0; j < NV && j < left; j++) {
                vf *x = (vf *)(row + v) + j;
                *x = exp2_or_zero(*x - peak);
                total += *x;
            }
        for (int i = 0; i < VL; i++) sum += total[i];
        totals[k] = sum;
    }
}

/* s[k] = factor * query . keys[rows[k]], four keys at a time; any number where there is no row (< 0). */
static void tile_score_pairs(const float *query, const float *keys, i64 stride, const int64_t *rows, i64 n, i64 depth,
                             float factor, float *s) {
    i64 fours = depth / 4 * 4;
    for (i64 k = 0; k < n; k += 4) {
        const float *row[4];
        v4 sums[4] = {{0}};
        for (int r = 0; r < 4; r++) row[r] = k + r < n && rows[k + r] >= 0 ? keys + rows[k + r] * stride : query;
        for (i64 d = 0; d < fours; d += 4)
            for (int r = 0; r < 4; r++) sums[r] += *(const v4 *)(row[r] + d) * *(const v4 *)(query + d);
        transpose4(sums);
        v4 total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (i64 d = fours; d < depth; d++)
            total += (v4){row[0][d], row[1][d], row[2][d], row[3][d]} * query[d];
        total *= factor;
        memcpy(s + k, &total, (n - k < 4 ? n - k : 4) * sizeof(float));
    }
}

/* Scores of pairs become shares of their group, groups[k] (< 0: none, share 0): 2^(s - the group's peak) over the
 * group's sum of these. */
static void tile_share_pairs(float *s, const int64_t *groups, i64 n, i64 n_groups, float *peaks, double *totals) {
    for (i64 g = 0; g < n_groups; g++) {
        peaks[g] = TILE_MASKED;
        totals[g] = 0;
    }
    for (i64 k = 0; k < n; k++)
        if (groups[k] >= 0 && s[k] > peaks[groups[k]]) peaks[groups[k]] = s[k];
    for (i64 k = 0; k < n; k++) s[k] = groups[k] >= 0 ? s[k] - peaks[groups[k]] : TILE_MASKED;
    for (i64 k = 0; k < n; k += VL) {
        size_t bytes = (n - k < VL ? n - k : VL) * sizeof(float);
        vf x = {0};
        memcpy(&x, s + k, bytes);
        x = exp2_or_zero(x);
        memcpy(s + k, &x, bytes);
    }
    for (i64 k = 0; k < n; k++)
        if (groups[k] >= 0) totals[groups[k]] += s[k];
    for (i64 g = 0; g < n_groups; g++) peaks[g] = (float)(1 / totals[g]); /* no longer needed as peaks */
    for (i64 k = 0; k < n; k++)
        if (groups[k] >= 0) s[k] *= peaks[groups[k]];
}

/* out = the sum of weights[k] values[rows[k]]; a row of weight 0 is not read. */
static void tile_sum_pairs(const float *values, i64 stride, const int64_t *rows, const float *weights, i64 n, i64 width,
                           float *out) {
    i64 e = 0;
    for (; e + VL <= width; e += VL) {
        vf total = {0};
        for (i64 k = 0; k < n; k++)
            if (weights[k] != 0) total += weights[k] * *(const loose_vf *)(values + rows[k] * stride + e);
        memcpy(out + e, &total, sizeof total);
    }
    for (; e < width; e++) {
        float total = 0;
        for (i64 k = 0; k < n; k++)
            if (weights[k] != 0) total += weights[k] * values[rows[k] * stride + e];
        out[e] = total;
    }
}
