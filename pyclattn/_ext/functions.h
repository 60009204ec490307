/* Exponential and its relatives on vectors, NaN kept. Polynomials are minimax fits of relative error. Error in units in
 * the last place, wherever the result is above 1e-35 (tests/test_rows.py): exp 0.7, tanh 1.3, all others 2. What is
 * smaller may be 0. */
#ifndef LOG2E
#define LOG2E 1.44269504088896341f
#endif

INL vf magnitude(vf x) { return (vf)((vi)x & spread_int(INT32_MAX)); }
INL vf signed_as(vf x, vf sign) { return (vf)((vi)x | ((vi)sign & spread_int(INT32_MIN))); }

/* e^(x + more) for |more| < 0.1 is (what is returned + low) * 2^n. x = n ln 2 + r, with ln 2 in two parts so that r is
 * exact. */
INL vf exp_parts(vf x, vf more, vf *low, vi *n) {
    vf t = x * LOG2E + 12582912.f, whole = t - 12582912.f;
    vf whole_r = x - whole * 0.693145752f, rest = whole * 1.42860677e-06f - more;
    vf r = whole_r - rest, lost = (whole_r - r) - rest;
    vf p = spread(0.0013814558f);
    p = p * r + 0.00836873613f;
    p = p * r + 0.041668389f;
    p = p * r + 0.166665211f;
    p = p * r + 0.49999994f;
    vf front = 1.f + r; /* and what its rounding left out */
    *low = (p * (r * r) + lost) + (r - (front - 1.f));
    *n = (vi)t - 0x4B400000;
    return front;
}

/* 2^n in two factors, since n goes from -150 to 129. */
INL vf exponential(vf x) {
    vi n;
    vf low, front = exp_parts(smaller(spread(89.f), larger(spread(-104.f), x)), (vf){0}, &low, &n);
    vi half = n >> 1;
    return (front + low) * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
}

/* x over 1 + e^-(at + more): one rounding less than the product of x and a logistic function has, and one less than an
 * exponential plus 1. Where 2^n is infinite, the result is 0 in place of less than 1e-36. */
INL vf logistic_share(vf x, vf at, vf more) {
    vi n;
    vf low, front = exp_parts(smaller(spread(88.5f), larger(spread(-88.f), -at)), -more, &low, &n);
    vf p = front + low, rest = (front - p) + low, scale = (vf)((n + 127) << 23);
    return x / (scale * p + (smaller(spread(0x1p127f), scale) * rest + 1.f));
}

INL vf logistic(vf x) { return logistic_share(spread(1.f), x, (vf){0}); }

/* The leading 12 bits: the product of two such is exact. */
INL vf leading(vf x) { return (vf)((vi)x & spread_int((int32_t)0xFFFFF000)); }

/* a - b * c where that is a rounding of a: exact where the machine has fused multiply-add, else by parts. */
INL vf less_product(vf a, vf b, vf c) {
#if VB > 16 || defined(__aarch64__)
    return a - b * c;
#else
    vf b_front = leading(b), b_rest = b - b_front, c_front = leading(c), c_rest = c - c_front;
    return ((a - b_front * c_front) - b_rest * c_front) - b * c_rest;
#endif
}

INL vf tanh_of(vf x) {
    vf square = x * x, size = magnitude(x);
    vf p = spread(-0.00570497848f);
    p = p * square + 0.0206390787f;
    p = p * square - 0.0537397116f;
    p = p * square + 0.133314416f;
    p = p * square - 0.333332807f;
    vf near = p * square * x + x;
    vf far = 1.f - 2.f / (exponential(smaller(spread(20.f), 2.f * size)) + 1.f);
    return blend(size < spread(0.625f), near, signed_as(far, x));
}

/* Near 13.28 the share of a normal distribution beyond is less than 1e-39, and 0 here: the scale of gaussian is 0. */
INL vf tail_bounded(vf x) { return smaller(spread(13.28f), magnitude(x)); }

/* e^(-x^2 / 2) = (1 + what is returned) * scale for x from 0 to 13.28. x^2 is split into what is exact and a rest, as
 * its error would be multiplied by x. */
INL vf gaussian(vf x, vf *scale) {
    vf front = leading(x), square = front * front, more = (x - front) * (x + front);
    vf t = square * (0.5f * LOG2E) + 12582912.f, n = t - 12582912.f;
    vf r = (square - n * (2 * 0.693145752f)) + (more - n * (2 * 1.42860677e-06f)); /* -2 of exp_parts' */
    vf p = spread(0.0013814558f / 64);
    p = p * r - 0.00836873613f / 32;
    p = p * r + 0.041668389f / 16;
    p = p * r - 0.166665211f / 8;
    p = p * r + 0.49999994f / 4;
    p = p * r - 0.5f;
    *scale = (vf)((0x4B400000 + 127 - (vi)t) << 23);
    return p * r;
}

/* The share of a normal distribution beyond x >= 0 is e^(-x^2 / 2) (1/2 + what is returned) / (x + 1.5), for
 * v = x / (x + 1.5). */
INL vf tail_factor(vf v) {
    vf u = v - 0.4375f, p = spread(0.31115222f);
    p = p * u + 0.261615515f;
    p = p * u - 0.101985529f;
    p = p * u - 0.26681444f;
    p = p * u - 0.208553985f;
    p = p * u - 0.0344859473f;
    p = p * u + 0.161450535f;
    p = p * u + 0.235909745f;
    p = p * u + 0.0781817883f;
    p = p * u - 0.250552326f;
    p = p * u - 0.360038519f;
    return p * u + 0.140800297f;
}

INL vf normal_tail(vf given) {
    vf scale, x = tail_bounded(given), f = gaussian(x, &scale), inverse = 1.f / (x + 1.5f);
    return (1.f + f) * (0.5f + tail_factor(x * inverse)) * inverse * scale;
}

INL vf erf_of(vf x) {
    vf square = x * x, size = magnitude(x);
    vf p = spread(7.85385782e-05f);
    p = p * square - 0.000801019254f;
    p = p * square + 0.00518832775f;
    p = p * square - 0.026853811f;
    p = p * square + 0.112835854f;
    p = p * square - 0.37612626f;
    p = p * square + 0.128379107f;
    vf far = 1.f - 2.f * normal_tail(1.41421356f * size);
    return blend(size < spread(0.96f), p * x + x, signed_as(far, x));
}

/* The normal distribution function. */
INL vf normal_share(vf x) {
    vf tail = normal_tail(x);
    return blend(x < (vf){0}, tail, 1.f - tail);
}

/* max(x, 0) less |x| times the share beyond it. That is v (1/2 + tail_factor) e^(-x^2 / 2), with v / 2 added last since
 * it is exact and most. `rest` is what roundings left out of v, times d; the slope of v (1/2 + tail_factor) over d is
 * near a square. */
INL vf gelu(vf given) {
    vf scale, x = tail_bounded(given), f = gaussian(x, &scale);
    vf d = x + 1.5f, v = x / d, lost = x - (d - 1.5f), slope = 0.732261f - 0.739760f * v;
    vf rest = less_product(x, v, d) - v * lost;
    vf half = 0.5f * v, more = v * tail_factor(v) + rest * slope * slope;
    return larger((vf){0}, given) - (half + ((half + more) * f + more)) * scale;
}

/* GELU to 2e-4, in a quarter of the time. The normal distribution function less 1/2 is x times a polynomial in x^2, from
 * 3.95 on a little more than 1/2, so that very negative numbers become 0. */
INL vf rough_gelu(vf x) {
    vf bounded = smaller(spread(3.95f), larger(spread(-3.95f), x)), square = bounded * bounded;
    vf p = spread(2.44360707e-08f);
    p = p * square - 1.68116751e-06f;
    p = p * square + 4.9552242e-05f;
    p = p * square - 0.00082904236f;
    p = p * square + 0.00884293319f;
    p = p * square - 0.0647227851f;
    p = p * square + 0.397986946f;
    return x * larger((vf){0}, p * bounded + 0.5f);
}

INL vf quick_gelu(vf x) { /* 1.702 = 1.7016602 + 0.00033984 */
    vf bounded = smaller(spread(99.f), larger(spread(-99.f), x)), front = leading(bounded);
    return logistic_share(x, 1.7016602f * front, 1.7016602f * (bounded - front) + 0.000339843752f * bounded);
}

INL vf activated(int kind, vf x) {
    switch (kind) {
    case TILE_RELU: return larger((vf){0}, x);
    case TILE_GELU: return gelu(x);
    case TILE_ROUGH_GELU: return rough_gelu(x);
    case TILE_GELU_TANH: return logistic_share(x, x * (x * x * 0.071354816f + 1.5957691f), (vf){0}); /* sqrt(8 / pi) */
    case TILE_QUICK_GELU: return quick_gelu(x);
    case TILE_SILU: return logistic_share(x, x, (vf){0});
    case TILE_SIGMOID: return logistic(x);
    default: return x;
    }
}
