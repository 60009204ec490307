/* What clusters are prepared with: sums over rows in float64, and weights by the rank of a number. Without the
 * instruction set's vectors these loops would cost more than the products between them. */

#define WIDE (VB / 8)
typedef double vd __attribute__((vector_size(VB)));
typedef float half_vf __attribute__((vector_size(VB / 2), aligned(4), may_alias)); /* at any float */

INL vd widened(const float *x) { return __builtin_convertvector(*(const half_vf *)x, vd); }

INL double sum_lanes(vd x) {
    double total = 0;
    for (int i = 0; i < WIDE; i++) total += x[i];
    return total;
}

/* nv vectors of columns. */
INL void sum_columns(int nv, const float *rows, i64 stride, const int64_t *index, i64 n, double *totals,
                     double *squares) {
    vd total[4], square[4];
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
        memcpy(&total[j], totals + j * WIDE, VB);
        if (squares) memcpy(&square[j], squares + j * WIDE, VB);
    }
    for (i64 k = 0; k < n; k++) {
        const float *row = rows + (index ? index[k] : k) * stride;
        if (index && k + 8 < n)
            for (i64 d = 0; d < nv * WIDE; d += 16) __builtin_prefetch(rows + index[k + 8] * stride + d);
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            vd x = widened(row + j * WIDE);
            total[j] += x;
            if (squares) square[j] += x * x;
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
        memcpy(totals + j * WIDE, &total[j], VB);
        if (squares) memcpy(squares + j * WIDE, &square[j], VB);
    }
}

static void tile_sum_rows(const float *rows, i64 stride, const int64_t *index, i64 n, i64 width, double *totals,
                          double *squares) {
    i64 d = 0;
    for (; d + 4 * WIDE <= width; d += 4 * WIDE)
        if (squares) sum_columns(4, rows + d, stride, index, n, totals + d, squares + d);
        else sum_columns(4, rows + d, stride, index, n, totals + d, 0);
    for (; d + WIDE <= width; d += WIDE) sum_columns(1, rows + d, stride, index, n, totals + d, squares ? squares + d : 0);
    for (; d < width; d++)
        for (i64 k = 0; k < n; k++) {
            double x = rows[(index ? index[k] : k) * stride + d];
            totals[d] += x;
            if (squares) squares[d] += x * x;
        }
}

static void tile_add_squares(const float *rows, i64 stride, i64 n, i64 width, const float *center, double *sums) {
    for (i64 k = 0; k < n; k++) {
        const float *row = rows + k * stride;
        vd total = {0};
        i64 d = 0;
        for (; d + WIDE <= width; d += WIDE) {
            vd x = __builtin_convertvector(*(const half_vf *)(row + d) - *(const half_vf *)(center + d), vd);
            total += x * x;
        }
        double rest = sum_lanes(total);
        for (; d < width; d++) rest += (double)(row[d] - center[d]) * (row[d] - center[d]);
        sums[k] += rest;
    }
}

static void tile_take_off(float *s, i64 n, i64 vectors, const float *center, float *squares, double *sums) {
    for (i64 k = 0; k < n; k++) {
        vd total = {0};
        for (i64 j = 0; j < vectors; j++) {
            float *at = s + k * LANES + j * VL;
            vf x = *(vf *)at - ((const vf *)center)[j];
            *(vf *)at = x;
            ((vf *)squares)[j] += x * x;
            vd low = widened(at), high = widened(at + WIDE);
            total += low * low + high * high;
        }
        sums[k] += sum_lanes(total);
    }
}

/* Of one vector's lanes, those that count. */
INL void weigh_lanes(vf x, uint32_t lanes, uint32_t first, uint32_t span, int shift, int64_t weight, int64_t *weights) {
    vi bits = (vi)x;
    vu rank = (vu)(bits ^ ((bits >> 31) | spread_int(INT32_MIN))) - first;
    lanes &= lanes_in((vi)(rank <= span));
    if (!lanes) return;
    uint32_t ranks[VL];
    memcpy(ranks, &rank, VB);
    for (; lanes; lanes &= lanes - 1) weights[ranks[__builtin_ctz(lanes)] >> shift] += weight;
}

static void tile_weigh_ranks(const float *x, const float *y, float offset, i64 n, uint32_t first, uint32_t span,
                             int shift, int64_t weight, int64_t *weights) {
    i64 i = 0;
    for (; i + VL <= n; i += VL)
        weigh_lanes((*(const loose_vf *)(x + i) + *(const loose_vf *)(y + i)) + offset, UINT32_MAX, first, span, shift,
                    weight, weights);
    if (i == n) return;
    vf a = {0}, b = {0};
    memcpy(&a, x + i, (n - i) * sizeof(float));
    memcpy(&b, y + i, (n - i) * sizeof(float));
    weigh_lanes((a + b) + offset, (1u << (n - i)) - 1, first, span, shift, weight, weights);
}
