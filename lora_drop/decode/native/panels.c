#include "panels.h"

#include "abi.h"
#include "vec.h"

/* Each kernel is written once and compiled for each number of rows, which the compiler then unrolls into registers. */
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")
#define EACH_ROW UNROLLED for (int r = 0; r < rows; r++)
#ifdef __AVX512F__
#define FOR_EACH_COUNT(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#else
#define FOR_EACH_COUNT(CASE) CASE(1) CASE(2) CASE(3) CASE(4)
#endif

INLINE void q4_1(const uint8_t *p, const float *x, const float *sums, int64_t blocks, float *y, int64_t n, int rows) {
    int64_t k = blocks * BLOCK;
    vf total[PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q4_BYTES, x += BLOCK) {
        vf one[PANEL_ROWS] = {0}, two[PANEL_ROWS] = {0};
        UNROLLED for (int j = 0; j < 4; j++) {
            vi codes = loadi(p + 4 * LANES + 4 * LANES * j);
            UNROLLED for (int s = 0; s < 8; s += 2) {
                vf even = __builtin_convertvector((codes >> (4 * s)) & 15, vf);
                vf odd = __builtin_convertvector((codes >> (4 * s + 4)) & 15, vf);
                const float *at = x + 8 * j + s;
                EACH_ROW one[r] = madd(even, splat(at[r * k]), one[r]);
                EACH_ROW two[r] = madd(odd, splat(at[r * k + 1]), two[r]);
            }
        }
        vf d = from_f16(p), m = from_f16(p + 2 * LANES);
        EACH_ROW total[r] = madd(m, splat(sums[r * blocks + b]), madd(d, one[r] + two[r], total[r]));
    }
    EACH_ROW memcpy(y + r * n, &total[r], sizeof total[r]);
}

INLINE void q8_0(const uint8_t *p, const float *x, int64_t blocks, float *y, int64_t n, int rows) {
    int64_t k = blocks * BLOCK;
    vf total[PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q8_BYTES, x += BLOCK) {
        vf one[PANEL_ROWS] = {0}, two[PANEL_ROWS] = {0};
        UNROLLED for (int j = 0; j < 8; j++) {
            vi codes = loadi(p + 2 * LANES + 4 * LANES * j);
            UNROLLED for (int s = 0; s < 4; s += 2) {
                vf even = __builtin_convertvector((codes << (24 - 8 * s)) >> 24, vf);
                vf odd = __builtin_convertvector((codes << (16 - 8 * s)) >> 24, vf);
                const float *at = x + 4 * j + s;
                EACH_ROW one[r] = madd(even, splat(at[r * k]), one[r]);
                EACH_ROW two[r] = madd(odd, splat(at[r * k + 1]), two[r]);
            }
        }
        vf d = from_f16(p);
        EACH_ROW total[r] = madd(d, one[r] + two[r], total[r]);
    }
    EACH_ROW memcpy(y + r * n, &total[r], sizeof total[r]);
}

void panel_q4_1(const uint8_t *p, const float *x, const float *sums, int64_t blocks, int64_t count, float *y,
                int64_t n) {
#define CASE(ROWS) \
    case ROWS: return q4_1(p, x, sums, blocks, y, n, ROWS);
    switch (count) { FOR_EACH_COUNT(CASE) }
#undef CASE
}

void panel_q8_0(const uint8_t *p, const float *x, int64_t blocks, int64_t count, float *y, int64_t n) {
#define CASE(ROWS) \
    case ROWS: return q8_0(p, x, blocks, y, n, ROWS);
    switch (count) { FOR_EACH_COUNT(CASE) }
#undef CASE
}

/* One row's block, 16 signed bytes after d, to its place among the 16 of a panel's block. Low byte first, whatever the
 * machine's order. */
static void pack_q8_0(const uint8_t *in, uint8_t *out, int row) {
    memcpy(out + 2 * row, in, 2);
    for (int j = 0; j < 8; j++) {
        uint32_t word = 0;
        for (int s = 0; s < 4; s++) word |= (uint32_t)in[2 + 4 * j + s] << (8 * s);
        memcpy(out + 2 * LANES + 4 * LANES * j + 4 * row, &word, 4);
    }
}

static void pack_q4_1(const uint8_t *in, uint8_t *out, int row) {
    memcpy(out + 2 * row, in, 2);
    memcpy(out + 2 * LANES + 2 * row, in + 2, 2);
    for (int j = 0; j < 4; j++) {
        uint32_t word = 0;
        for (int s = 0; s < 8; s++) {
            int i = 8 * j + s; /* byte i % 16 has weight i in its low (i < 16) or high bits */
            word |= (uint32_t)(i < 16 ? in[4 + i] & 15 : in[4 + i - 16] >> 4) << (4 * s);
        }
        memcpy(out + 4 * LANES + 4 * LANES * j + 4 * row, &word, 4);
    }
}

void ld_pack(const uint8_t *source, uint8_t *target, int64_t n, int64_t k, int64_t kind) {
    int64_t blocks = k / BLOCK, size = kind == Q4_1 ? Q4_BYTES : Q8_BYTES;
    for (int64_t r = 0; r < n; r++)
        for (int64_t b = 0; b < blocks; b++) {
            const uint8_t *in = source + (r * blocks + b) * size;
            uint8_t *out = target + (r / LANES * blocks + b) * LANES * size;
            (kind == Q4_1 ? pack_q4_1 : pack_q8_0)(in, out, (int)(r % LANES));
        }
}
