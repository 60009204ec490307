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
INL vf square_distance(const vf *panel, long j, long depth, const float *point) {
    vf total = {0};
    for (long d = 0; d < depth; d++) {
        vf difference = panel[d * NV + j] - point[d], square = difference * difference;
        ROUNDED(square);
        total += square;
    }
    return total;
}

static void tile_apart(const float *points, long stride, long n, long depth, const float *panel, long vectors,
                       float *s, float *group_peaks) {
    vf *scores = (vf *)s, *peaks = (vf *)group_peaks;
    for (long k = 0; k < n; k++)
        for (long j = 0; j < vectors; j++) {
            vf x = -square_distance((const vf *)panel, j, depth, points + k * stride);
            x = larger(spread(-3.4028234663852886e38f), x);
            scores[k * NV + j] = x;
            vf *peak = peaks + k / MR * NV + j;
            *peak = k % MR ? larger(x, *peak) : x;
        }
}

INL long farthest_of(const float *panels, long n_panels, long depth, const float *center, float *nearest) {
    vf top[NV];
    vi at[NV];
    for (int j = 0; j < NV; j++) {
        top[j] = spread(-2.f);
        at[j] = (vi){0};
    }
    for (long p = 0; p < n_panels; p++) {
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
    long place = 0;
    for (int j = 0; j < NV; j++)
        for (int i = 0; i < VL; i++) {
            long here = (long)at[j][i] * LANES + j * VL + i;
            if (top[j][i] > most || (top[j][i] == most && here < place)) {
                most = top[j][i];
                place = here;
            }
        }
    return place;
}

static long tile_farthest(const float *panels, long n_panels, long depth, const float *center, float *nearest) {
    if (depth == 3) return farthest_of(panels, n_panels, 3, center, nearest); /* coordinates unrolled */
    return farthest_of(panels, n_panels, depth, center, nearest);
}
