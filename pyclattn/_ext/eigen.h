/* Eigenvectors of symmetric matrices: Householder's tridiagonal form, then QL steps with implicit shifts (Wilkinson). */

enum { QL_STEPS = 60 }; /* of one eigenvalue; two are usual */

/* row <- row + x other, of `n` whole vectors. */
INL void add_multiple(vd *row, double x, const vd *other, i64 n) {
    for (i64 j = 0; j < n; j++) row[j] += x * other[j];
}

/* sum <- the sum of weights[i] rows[i], of n whole vectors. */
INL void weighted_sum(const double *rows, i64 stride, i64 first, i64 last, const double *weights, vd *sum, i64 n) {
    for (i64 j = 0; j < n; j++) sum[j] = (vd){0};
    i64 i = first;
    for (; i + 4 <= last; i += 4) {
        const double *row = rows + i * stride;
        for (i64 j = 0; j < n; j++)
            sum[j] += (weights[i] * ((const vd *)row)[j] + weights[i + 1] * ((const vd *)(row + stride))[j]) +
                      (weights[i + 2] * ((const vd *)(row + 2 * stride))[j] +
                       weights[i + 3] * ((const vd *)(row + 3 * stride))[j]);
    }
    for (; i < last; i++) add_multiple(sum, weights[i], (const vd *)(rows + i * stride), n);
}

/* Row k becomes the reflection that takes it to (.., values[k], off[k], 0, ..), of weight beta[k]; rows below follow. */
static void tridiagonalise(double *a, i64 n, i64 stride, double *values, double *off, double *beta, double *w) {
    for (i64 k = 0; k + 2 < n; k++) {
        double *v = a + k * stride, rest = 0, product = 0;
        i64 from = (k + 1) / WIDE * WIDE, vectors = (stride - from) / WIDE;
        values[k] = v[k];
        for (i64 i = k + 2; i < n; i++) rest += v[i] * v[i];
        for (i64 i = 0; i <= k; i++) v[i] = 0;
        off[k] = v[k + 1];
        beta[k] = 0;
        if (rest == 0) continue;
        off[k] = v[k + 1] > 0 ? -sqrt(v[k + 1] * v[k + 1] + rest) : sqrt(v[k + 1] * v[k + 1] + rest);
        v[k + 1] -= off[k];
        beta[k] = 2 / (v[k + 1] * v[k + 1] + rest);
        weighted_sum(a + from, stride, k + 1, n, v, (vd *)(w + from), vectors);
        for (i64 i = from; i <= k; i++) w[i] = 0;
        for (i64 i = k + 1; i < n; i++) product += v[i] * w[i];
        for (i64 i = k + 1; i < n; i++) w[i] = beta[k] * (w[i] - 0.5 * beta[k] * product * v[i]);
        for (i64 i = k + 1; i < n; i++) {
            vd *row = (vd *)(a + i * stride + from);
            for (i64 j = 0; j < vectors; j++)
                row[j] -= v[i] * ((const vd *)(w + from))[j] + w[i] * ((const vd *)(v + from))[j];
        }
    }
    for (i64 k = n > 2 ? n - 2 : 0; k < n; k++) {
        values[k] = a[k * stride + k];
        off[k] = k + 1 < n ? a[k * stride + k + 1] : 0;
        beta[k] = 0;
    }
}

/* The product of the reflections, transposed: rows of z. */
static void multiply_reflections(const double *a, i64 n, i64 stride, const double *beta, double *z, double *w) {
    memset(z, 0, n * stride * sizeof(double));
    for (i64 i = 0; i < n; i++) z[i * stride + i] = 1;
    for (i64 k = n - 3; k >= 0; k--) {
        const double *v = a + k * stride;
        i64 from = (k + 1) / WIDE * WIDE, vectors = (stride - from) / WIDE;
        if (beta[k] == 0) continue;
        weighted_sum(z + from, stride, k + 1, n, v, (vd *)(w + from), vectors);
        for (i64 i = k + 1; i < n; i++)
            add_multiple((vd *)(z + i * stride + from), -beta[k] * v[i], (const vd *)(w + from), vectors);
    }
    for (i64 i = 0; i < n; i++)
        for (i64 j = 0; j < i; j++) {
            double x = z[i * stride + j];
            z[i * stride + j] = z[j * stride + i];
            z[j * stride + i] = x;
        }
}

/* One step on rows first to last of the tridiagonal form; the rows of z are turned alike. */
static void ql_step(double *values, double *off, i64 first, i64 last, double *z, i64 stride) {
    double g = (values[first + 1] - values[first]) / (2 * off[first]), s = 1, c = 1, shift = 0;
    double r = sqrt(g * g + 1);
    g = values[last] - values[first] + off[first] / (g + (g < 0 ? -r : r));
    for (i64 i = last - 1; i >= first; i--) {
        double f = s * off[i], b = c * off[i];
        r = sqrt(f * f + g * g);
        off[i + 1] = r;
        if (r == 0) {
            values[i + 1] -= shift;
            off[last] = 0;
            return;
        }
        double inverse = 1 / r;
        s = f * inverse;
        c = g * inverse;
        g = values[i + 1] - shift;
        r = (values[i] - g) * s + 2 * c * b;
        shift = s * r;
        values[i + 1] = g + shift;
        g = c * r - b;
        vd *x = (vd *)(z + i * stride), *y = (vd *)(z + (i + 1) * stride);
        for (i64 j = 0; j < stride / WIDE; j++) {
            vd old = x[j];
            x[j] = c * old - s * y[j];
            y[j] = s * old + c * y[j];
        }
    }
    values[first] -= shift;
    off[first] = g;
    off[last] = 0;
}

static void tile_eigen(double *a, i64 n, i64 stride, double *z, double *values, double *work) {
    double *off = work, *beta = work + stride, *w = work + 2 * stride, most = 0;
    tridiagonalise(a, n, stride, values, off, beta, w);
    multiply_reflections(a, n, stride, beta, z, w);
    for (i64 i = 0; i < n; i++) most = fmax(most, fabs(values[i]) + fabs(off[i]));
    for (i64 first = 0; first < n; first++)
        for (i64 step = 0; step < QL_STEPS; step++) {
            i64 last = first;
            while (last < n - 1 && fabs(off[last]) > 2.2e-16 * most) last++;
            if (last == first) break;
            ql_step(values, off, first, last, z, stride);
        }
    for (i64 i = 0; i < n; i++) { /* the largest first */
        i64 top = i;
        for (i64 k = i + 1; k < n; k++) top = values[k] > values[top] ? k : top;
        double value = values[top];
        values[top] = values[i];
        values[i] = value;
        for (i64 j = 0; top != i && j < stride / WIDE; j++) {
            vd *x = (vd *)(z + i * stride) + j, *y = (vd *)(z + top * stride) + j, old = *x;
            *x = *y;
            *y = old;
        }
    }
}
