/* The transforms of winograd.h on the vectors of lanes.h. */
#include "lanes.h"
#include "winograd.h"

static void winograd_deal(const float *restrict row, i64 n, float *restrict panel) {
    for (i64 j = 0; j < n; j++) {
        panel[j] = row[2 * j];
        panel[LANES + j] = row[2 * j + 1];
        panel[2 * LANES + j] = row[2 * j + 2];
    }
}

static void winograd_enter(const float *d, float *panel, i64 step) {
    for (i64 j = 0; j < NV; j++) {
        vf part[3][3], *to = (vf *)panel + j;
        const vf *from = (const vf *)d + j;
#pragma GCC unroll 3
        for (int c = 0; c < 3; c++) {
            vf first = from[c * NV], middle = from[(3 + c) * NV], last = from[(6 + c) * NV];
            part[0][c] = first - middle;
            part[1][c] = middle;
            part[2][c] = middle - last;
        }
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++, to += 3 * step / VL) {
            *to = part[r][0] - part[r][1];
            *(to + step / VL) = part[r][1];
            *(to + 2 * step / VL) = part[r][1] - part[r][2];
        }
    }
}

/* Both outputs of an axis. */
INL void pair_from(const vf m[3], vf out[2]) {
    out[0] = m[0] + m[1];
    out[1] = m[1] - m[2];
}

static void winograd_leave(const float *m, i64 step, float bias, int is_relu, float *lines) {
    float columns[2][4][LANES] __attribute__((aligned(64)));
    vf least = spread(is_relu ? 0.f : -INFINITY);
    for (i64 j = 0; j < NV; j++)
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            const vf *from = (const vf *)(m + p * WINOGRAD_TERMS * step) + j;
            vf rows[2][3];
#pragma GCC unroll 3
            for (int c = 0; c < 3; c++) {
                vf sums[3], both[2];
                for (int r = 0; r < 3; r++) sums[r] = from[(3 * r + c) * step / VL];
                pair_from(sums, both);
                rows[0][c] = both[0];
                rows[1][c] = both[1];
            }
#pragma GCC unroll 2
            for (int e = 0; e < 2; e++) {
                vf both[2];
                pair_from(rows[e], both);
                ((vf *)columns[e][p])[j] = larger(least, both[0] + bias);
                ((vf *)columns[e][2 + p])[j] = larger(least, both[1] + bias);
            }
        }
    for (int e = 0; e < 2; e++)
        for (i64 i = 0; i < LANES; i += 4, lines += 16) {
            v4 block[4];
            for (int c = 0; c < 4; c++) block[c] = *(const v4 *)(columns[e][c] + i);
            transpose4(block);
            for (int c = 0; c < 4; c++) *(v4 *)(lines + 4 * c) = block[c];
        }
}

#define JOIN(a, b) a##b
#define TABLE_NAME(isa) JOIN(winograd_, isa)
const winograd_isa TABLE_NAME(ISA) = {winograd_deal, winograd_enter, winograd_leave};
