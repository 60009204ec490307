/* What CAST adds: weights by the normal distribution, shares summed over heads, and logits that are kept. */

/* s <- the normal distribution function about sqrt(1/2) with deviation sqrt(1 / (4 pi)) */
static void tile_laplace(float *s, i64 n, i64 vectors) {
    for (i64 k = 0; k < n; k++) {
        vf *row = (vf *)s + k * NV;
        for (i64 j = 0; j < vectors; j++) row[j] = normal_share((row[j] - 0.70710678f) * 3.5449077f);
    }
}

/* One vector of each of n rows, times its gain, and the peaks; of the last vector only so many bytes are there. */
INL void temper_vector(const float *logits, i64 stride, i64 n, size_t bytes, vf gain, vf *s, vf *peaks) {
    for (i64 k = 0; k < n; peaks += NV) {
        vf peak = spread(TILE_MASKED);
        for (i64 last = k + MR < n ? k + MR : n; k < last; k++) {
            vf x = {0};
            memcpy(&x, logits + k * stride, bytes);
            s[k * NV] = x *= gain;
            peak = larger(x, peak);
        }
        *peaks = peak;
    }
}

static void tile_temper(const float *logits, i64 stride, i64 n, i64 n_lanes, const float *gains, float *s,
                        float *group_peaks) {
    const vf *gain = (const vf *)gains;
    i64 whole = n_lanes / VL, rest = n_lanes % VL;
    for (i64 j = 0; j < whole; j++)
        temper_vector(logits + j * VL, stride, n, sizeof(vf), gain[j], (vf *)s + j, (vf *)group_peaks + j);
    if (rest)
        temper_vector(logits + whole * VL, stride, n, rest * sizeof(float), gain[whole], (vf *)s + whole,
                      (vf *)group_peaks + whole);
}

static void tile_keep(const float *s, i64 n, i64 n_lanes, float *kept, i64 stride) {
    int is_far = n_lanes == LANES && is_aligned(kept, stride);
    for (i64 k = 0; k < n; k++, s += LANES, kept += stride) {
        if (is_far)
            for (i64 j = 0; j < NV; j++) stream(kept + j * VL, ((const vf *)s)[j]);
        else
            memcpy(kept, s, n_lanes * sizeof(float));
    }
}

static void tile_add_shares(const float *s, i64 n, i64 vectors, const float *factor, float *total) {
    for (i64 k = 0; k < n; k++)
        for (i64 j = 0; j < vectors; j++)
            ((vf *)total)[k * NV + j] += ((const vf *)s)[k * NV + j] * ((const vf *)factor)[j];
}
