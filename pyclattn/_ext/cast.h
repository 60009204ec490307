/* What CAST adds: weights by the normal distribution, shares summed over heads, logits that are kept, and a cluster's
 * one query of its own, whose products fill no panel. */

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

/* NaN becomes the least, too */
static void tile_floor(float *s, i64 n, i64 vectors, float least) {
    for (i64 k = 0; k < n; k++)
        for (i64 j = 0; j < vectors; j++) ((vf *)s)[k * NV + j] = larger(((vf *)s)[k * NV + j], spread(least));
}

/* With u = e^-|x|: sigmoid(x) = (1 or u) / (1 + u), and log(1 + u) = 2 artanh(u / (2 + u)), a series in at most 1/9. */
static void tile_gate(const float *gate, float *shares, float *of_query, float *of_key) {
    for (i64 j = 0; j < NV; j++) {
        vf x = ((const vf *)gate)[j], u = exponential(-magnitude(x)), t = u / (2.f + u), square = t * t;
        vf p = spread(1.f / 13);
        p = p * square + 1.f / 11;
        p = p * square + 1.f / 9;
        p = p * square + 1.f / 7;
        p = p * square + 1.f / 5;
        p = p * square + 1.f / 3;
        p = p * square + 1.f;
        vf low = 2.f * t * p + 1.f;
        ((vf *)shares)[j] = blend(x < (vf){0}, u, spread(1.f)) / (1.f + u);
        ((vf *)of_query)[j] = larger((vf){0}, x) + low;
        ((vf *)of_key)[j] = larger((vf){0}, -x) + low;
    }
}

static i64 tile_next_above(const float *s, i64 at, i64 n, float threshold) {
    for (; at + VL <= n; at += VL) {
        vf x;
        memcpy(&x, s + at, sizeof(vf));
        uint32_t hits = above(x, spread(threshold));
        if (hits) return at + __builtin_ctz(hits);
    }
    while (at < n && !(s[at] > threshold)) at++;
    return at;
}

/* Four rows at a time: their sums over lanes are one transposition. */
static void tile_dots(const float *rows, i64 stride, i64 n, i64 depth, const float *other, float *dots) {
    i64 whole = depth / VL * VL;
    size_t rest = (depth - whole) * sizeof(float);
    for (i64 k = 0; k < n; k += 4) {
        vf sums[4] = {{0}};
        v4 parts[4] = {{0}};
        for (int r = 0; r < 4 && k + r < n; r++) {
            const float *row = rows + (k + r) * stride;
            vf x, y, more = {0};
            i64 d = 0;
            for (; d + 2 * VL <= whole; d += 2 * VL) { /* two chains */
                memcpy(&x, row + d, sizeof(vf));
                memcpy(&y, other + d, sizeof(vf));
                sums[r] += x * y;
                memcpy(&x, row + d + VL, sizeof(vf));
                memcpy(&y, other + d + VL, sizeof(vf));
                more += x * y;
            }
            if (d < whole) {
                memcpy(&x, row + d, sizeof(vf));
                memcpy(&y, other + d, sizeof(vf));
                sums[r] += x * y;
            }
            if (rest) {
                x = y = (vf){0};
                memcpy(&x, row + whole, rest);
                memcpy(&y, other + whole, rest);
                more += x * y;
            }
            sums[r] += more;
            for (int i = 0; i < VL / 4; i++) parts[r] += ((const v4 *)&sums[r])[i];
        }
        transpose4(parts);
        v4 four = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        memcpy(dots + k, &four, (n - k < 4 ? n - k : 4) * sizeof(float));
    }
}

/* One vector of a sum of rows, in four chains; of the last vector only so many bytes are there. */
INL void sum_vector(const float *rows, i64 stride, i64 n, size_t bytes, const float *weights, i64 step, float alpha,
                    float *sum) {
    vf sums[4] = {{0}}, total = {0};
    i64 k = 0;
    for (; k + 4 <= n; k += 4)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            vf x = {0};
            memcpy(&x, rows + (k + r) * stride, bytes);
            sums[r] += x * weights[(k + r) * step];
        }
    for (; k < n; k++) {
        vf x = {0};
        memcpy(&x, rows + k * stride, bytes);
        sums[0] += x * weights[k * step];
    }
    memcpy(&total, sum, bytes);
    total = total * alpha + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    memcpy(sum, &total, bytes);
}

static void tile_add_rows(const float *rows, i64 stride, i64 n, i64 width, const float *weights, i64 step, float alpha,
                          float *sum) {
    i64 e = 0;
    for (; e + VL <= width; e += VL) sum_vector(rows + e, stride, n, sizeof(vf), weights, step, alpha, sum + e);
    if (e < width) sum_vector(rows + e, stride, n, (width - e) * sizeof(float), weights, step, alpha, sum + e);
}
