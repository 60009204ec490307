/* What centroid attention needs: a softmax over lanes, where all else here takes it over rows. */

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
