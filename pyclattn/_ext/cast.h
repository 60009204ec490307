/* What CAST adds: weights by the normal distribution, and shares summed over heads. */

/* s <- the normal distribution function about sqrt(1/2) with deviation sqrt(1 / (4 pi)) */
static void tile_laplace(float *s, i64 n, i64 vectors) {
    for (i64 k = 0; k < n; k++) {
        vf *row = (vf *)s + k * NV;
        for (i64 j = 0; j < vectors; j++) row[j] = normal_share((row[j] - 0.70710678f) * 3.5449077f);
    }
}

static void tile_add_shares(const float *s, i64 n, i64 vectors, const float *factor, float *total) {
    for (i64 k = 0; k < n; k++)
        for (i64 j = 0; j < vectors; j++)
            ((vf *)total)[k * NV + j] += ((const vf *)s)[k * NV + j] * ((const vf *)factor)[j];
}
