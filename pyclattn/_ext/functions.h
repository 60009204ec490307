/* Exponential and its relatives on vectors, NaN kept. Polynomials are minimax fits of relative error. Error in units in
 * the last place, wherever the result is above 1e-35 (tests/test_rows.py): exp 0.7, tanh 1.3, erf 1.9, SiLU 2, logistic 2.1,
 * GELU 6. */
#ifndef LOG2E
#define LOG2E 1.44269504088896341f
#endif

INL vf smaller(vf bound, vf x) { return -larger(-bound, -x); } /* where x is NaN it stays NaN */
INL vf magnitude(vf x) { return (vf)((vi)x & spread_int(INT32_MAX)); }
INL vf signed_as(vf x, vf sign) { return (vf)((vi)x | ((vi)sign & spread_int(INT32_MIN))); }

/* e^(x + more) for |more| < 0.1. x = n ln 2 + r, with ln 2 in two parts so that r is exact; 2^n in two factors, since
 * n goes from -150 to 129. */
INL vf exp_sum(vf x, vf more) {
    x = smaller(spread(89.f), larger(spread(-104.f), x));
    vf t = x * LOG2E + 12582912.f, n = t - 12582912.f;
    vf whole_r = x - n * 0.693145752f, low = n * 1.42860677e-06f - more;
    vf r = whole_r - low, lost = (whole_r - r) - low;
    vf p = spread(0.0013814558f);
    p = p * r + 0.00836873613f;
    p = p * r + 0.041668389f;
    p = p * r + 0.166665211f;
    p = p * r + 0.49999994f;
    vf front = 1.f + r; /* and what its rounding left out */
    p = front + ((p * (r * r) + lost) + (r - (front - 1.f)));
    vi whole = (vi)t - 0x4B400000, half = whole >> 1;
    return p * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
}

INL vf exponential(vf x) { return exp_sum(x, (vf){0}); }

/* x over 1 + e^-(at + more): one rounding less than the product of x and a logistic function has. Where the exponential
 * overflows, the result is 0 in place of less than 1e-36. */
INL vf logistic_share(vf x, vf at, vf more) { return x / (1.f + exp_sum(-at, -more)); }

INL vf logistic(vf x) { return logistic_share(spread(1.f), x, (vf){0}); }

/* The leading 12 bits: the product of two such is exact. */
INL vf leading(vf x) { return (vf)((vi)x & spread_int((int32_t)0xFFFFF000)); }

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

/* e^(x^2 / 2) times the share of a normal distribution beyond x >= 0, up to 14.5: 1 / (x + 2.5) times a polynomial in
 * (x - 2.5) / (x + 2.5) */
INL vf scaled_tail(vf x) {
    vf inverse = 1.f / (x + 2.5f), u = 1.f - 5.f * inverse;
    vf p = spread(-0.000157266491f);
    p = p * u - 0.000310864532f;
    p = p * u + 0.000684344326f;
    p = p * u + 0.00252329675f;
    p = p * u - 0.00160096097f;
    p = p * u - 0.0163860209f;
    p = p * u + 0.0092359148f;
    p = p * u + 0.131986961f;
    p = p * u - 0.433692008f;
    p = p * u + 0.706656635f;
    return p * inverse;
}

/* The share beyond x >= 0 itself. x^2 is split into what is exact and a rest, as its error would be multiplied by x.
 * The exponential is that of exp_sum where nothing overflows: beyond 13.1 the share is less than 1e-38, and 0 here. */
INL vf normal_tail(vf given) {
    vf x = smaller(spread(13.1f), given), front = leading(x);
    vf exponent = -0.5f * front * front, more = -0.5f * (x - front) * (x + front);
    vf t = exponent * LOG2E + 12582912.f, n = t - 12582912.f;
    vf r = (exponent - n * 0.693145752f) - (n * 1.42860677e-06f - more);
    vf p = spread(0.0013814558f);
    p = p * r + 0.00836873613f;
    p = p * r + 0.041668389f;
    p = p * r + 0.166665211f;
    p = p * r + 0.49999994f;
    p = p * (r * r) + r + 1.f;
    vf share = (vf)((vu)p + ((vu)t << 23)) * scaled_tail(x);
    return blend(given > spread(13.1f), (vf){0}, share);
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
    vf tail = normal_tail(magnitude(x));
    return blend(x < (vf){0}, tail, 1.f - tail);
}

INL vf gelu(vf x) { return x * normal_share(x); }

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
