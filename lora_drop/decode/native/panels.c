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

#ifdef __AVX512VNNI__

enum { AHEAD = 4096 };

typedef int8_t vb __attribute__((vector_size(LANES)));

void take(const float *x, int64_t blocks, Taken *taken) {
    for (; blocks > 0; blocks--, x += BLOCK, taken++) {
        vf part[2] = {loadf(x), loadf(x + LANES)};
        vi one = (vi)part[0] & INT32_MAX, two = (vi)part[1] & INT32_MAX;
        vi larger = (vi)choose(one > two, (vf)one, (vf)two); /* in this order a NaN is the largest, and stays */
        int32_t bits = _mm512_reduce_max_epi32((__m512i)larger);
        float top;
        memcpy(&top, &bits, sizeof top);
        float finer = top > 1e-30f ? 0x1p22f / top : 0;
        vi all = {0}, high = {0};
        for (int i = 0; i < 2; i++) {
            /* Adding 1.5 * 2^23 rounds to a whole number. With 0x808080 more, each byte is a digit plus 128. */
            vi whole = (vi)madd(part[i], splat(finer), splat(12582912.0f)) - 0x4b400000;
            vi bytes = (whole + 0x808080) ^ 0x808080;
            for (int plane = 0; plane < 3; plane++) {
                vb digits = __builtin_convertvector(bytes >> (16 - 8 * plane), vb);
                memcpy(taken->digits[plane] + LANES * i, &digits, sizeof digits);
            }
            all += whole;
            high += (whole + 0x8080) >> 16;
        }
        int32_t sum = _mm512_reduce_add_epi32((__m512i)all), first = _mm512_reduce_add_epi32((__m512i)high);
        taken->scale = top * 0x1p-22f;
        taken->sum = (float)sum;
        taken->first = -128 * first;
        taken->rest = -128 * (sum - 65536 * first);
    }
}

/* Asks for what comes AHEAD bytes later, while this is computed with: the processor's own prefetch stops at a page. */
INLINE void fetch(const uint8_t *p, int bytes) {
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(p + AHEAD + at);
}

/* What 32 codes of each of 16 rows, which are not negative, and the planes of x give. The planes take turns, as each sum
 * waits for the one before. */
INLINE void add_dots(const vi *codes, const Taken *x, vi *sums) {
    UNROLLED for (int j = 0; j < 8; j++)
        UNROLLED for (int plane = 0; plane < 3; plane++) {
            int32_t four;
            memcpy(&four, x->digits[plane] + 4 * j, sizeof four);
            sums[plane] = (vi)_mm512_dpbusd_epi32((__m512i)sums[plane], (__m512i)codes[j], _mm512_set1_epi32(four));
        }
}

INLINE void q4_1(const uint8_t *p, const Taken *x, int64_t blocks, float *y, int64_t n, int rows) {
    vf total[PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q4_BYTES, x++) {
        fetch(p, LANES * Q4_BYTES);
        vi codes[8];
        for (int j = 0; j < 4; j++) {
            vi word = loadi(p + 4 * LANES + 4 * LANES * j);
            codes[2 * j] = word & 0x0f0f0f0f;
            codes[2 * j + 1] = (word >> 4) & 0x0f0f0f0f;
        }
        vf d = from_f16(p), m = from_f16(p + 2 * LANES);
        EACH_ROW {
            const Taken *t = x + r * blocks;
            vi sums[3] = {0};
            add_dots(codes, t, sums);
            vi whole = (((sums[0] << 8) + sums[1]) << 8) + sums[2]; /* 32 * 15 * 2^22 < 2^31 */
            vf one = madd(d, __builtin_convertvector(whole, vf), m * splat(t->sum));
            total[r] = madd(one, splat(t->scale), total[r]);
        }
    }
    EACH_ROW memcpy(y + r * n, &total[r], sizeof total[r]);
}

INLINE void q8_0(const uint8_t *p, const Taken *x, int64_t blocks, float *y, int64_t n, int rows) {
    vf total[PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q8_BYTES, x++) {
        fetch(p, LANES * Q8_BYTES);
        vi codes[8], zero = {0};
        for (int j = 0; j < 8; j++) /* plus 128 */
            codes[j] = loadi(p + 2 * LANES + 4 * LANES * j) ^ (int32_t)0x80808080;
        vf d = from_f16(p);
        EACH_ROW {
            const Taken *t = x + r * blocks;
            vi sums[3] = {zero + t->first, zero, zero + t->rest};
            add_dots(codes, t, sums);
            vf high = __builtin_convertvector(sums[0], vf);
            vf rest = __builtin_convertvector((sums[1] << 8) + sums[2], vf);
            vf whole = madd(high, splat(65536.0f), rest);
            total[r] = madd(d * whole, splat(t->scale), total[r]);
        }
    }
    EACH_ROW memcpy(y + r * n, &total[r], sizeof total[r]);
}

#else

void take(const float *x, int64_t blocks, Taken *taken) {
    for (; blocks > 0; blocks--, x += BLOCK, taken++) {
        taken->sum = sum(loadf(x) + loadf(x + LANES));
        memcpy(taken->x, x, sizeof taken->x);
    }
}

INLINE void q4_1(const uint8_t *p, const Taken *x, int64_t blocks, float *y, int64_t n, int rows) {
    vf total[PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q4_BYTES, x++) {
        vf one[PANEL_ROWS] = {0}, two[PANEL_ROWS] = {0};
        UNROLLED for (int j = 0; j < 4; j++) {
            vi codes = loadi(p + 4 * LANES + 4 * LANES * j);
            UNROLLED for (int i = 0; i < 4; i++) {
                vf low = __builtin_convertvector((codes >> (8 * i)) & 15, vf);
                vf high = __builtin_convertvector((codes >> (8 * i + 4)) & 15, vf);
                EACH_ROW one[r] = madd(low, splat(x[r * blocks].x[8 * j + i]), one[r]);
                EACH_ROW two[r] = madd(high, splat(x[r * blocks].x[8 * j + 4 + i]), two[r]);
            }
        }
        vf d = from_f16(p), m = from_f16(p + 2 * LANES);
        EACH_ROW total[r] = madd(m, splat(x[r * blocks].sum), madd(d, one[r] + two[r], total[r]));
    }
    EACH_ROW memcpy(y + r * n, &total[r], sizeof total[r]);
}

INLINE void q8_0(const uint8_t *p, const Taken *x, int64_t blocks, float *y, int64_t n, int rows) {
    vf total[PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q8_BYTES, x++) {
        vf one[PANEL_ROWS] = {0}, two[PANEL_ROWS] = {0};
        UNROLLED for (int j = 0; j < 8; j++) {
            vi codes = loadi(p + 2 * LANES + 4 * LANES * j);
            UNROLLED for (int s = 0; s < 4; s += 2) {
                vf even = __builtin_convertvector((codes << (24 - 8 * s)) >> 24, vf);
                vf odd = __builtin_convertvector((codes << (16 - 8 * s)) >> 24, vf);
                EACH_ROW one[r] = madd(even, splat(x[r * blocks].x[4 * j + s]), one[r]);
                EACH_ROW two[r] = madd(odd, splat(x[r * blocks].x[4 * j + s + 1]), two[r]);
            }
        }
        vf d = from_f16(p);
        EACH_ROW total[r] = madd(d, one[r] + two[r], total[r]);
    }
    EACH_ROW memcpy(y + r * n, &total[r], sizeof total[r]);
}

#endif

void panel_q4_1(const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n) {
#define CASE(ROWS) \
    case ROWS: return q4_1(p, x, blocks, y, n, ROWS);
    switch (count) { FOR_EACH_COUNT(CASE) }
#undef CASE
}

void panel_q8_0(const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n) {
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
            word |= (uint32_t)(i < 16 ? in[4 + i] & 15 : in[4 + i - 16] >> 4) << (s < 4 ? 8 * s : 8 * (s - 4) + 4);
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
