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

#ifdef BYTE_DOTS

enum { AHEAD = 4096 };

/* Vectors as long as the processor's own: PARTS of them hold the 16 rows. */
#ifdef __AVX512VNNI__
enum { LONG = 16 };
#else
enum { LONG = 8 };
#endif
enum { PARTS = LANES / LONG };
typedef float wf __attribute__((vector_size(4 * LONG)));
typedef int32_t wi __attribute__((vector_size(4 * LONG)));
typedef int8_t wb __attribute__((vector_size(LONG)));

INLINE wi load_words(const void *p) { wi v; memcpy(&v, p, sizeof v); return v; }
INLINE wf all_of(float x) { return x - (wf){0}; }

#ifdef __AVX512VNNI__
INLINE wf fused(wf a, wf b, wf c) { return (wf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE wf load_f16(const uint8_t *p) { return from_f16(p); }
INLINE int32_t total_of(wi v) { return _mm512_reduce_add_epi32((__m512i)v); }
INLINE int32_t largest_of(wi v) { return _mm512_reduce_max_epi32((__m512i)v); }
#else
INLINE wf fused(wf a, wf b, wf c) { return (wf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE wf load_f16(const uint8_t *p) { return (wf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

INLINE int32_t total_of(wi v) {
    int32_t total = 0;
    UNROLLED for (int l = 0; l < LONG; l++) total += v[l];
    return total;
}

INLINE int32_t largest_of(wi v) {
    int32_t largest = 0;
    UNROLLED for (int l = 0; l < LONG; l++) largest = v[l] > largest ? v[l] : largest;
    return largest;
}
#endif

void take(const float *x, int64_t blocks, Taken *taken) {
    for (; blocks > 0; blocks--, x += BLOCK, taken++) {
        wi top_bits = {0}, all = {0};
        for (int i = 0; i < BLOCK; i += LONG) { /* by their bits, in which order a NaN is the largest, and stays */
            wi bits = load_words(x + i) & INT32_MAX, larger = bits > top_bits;
            top_bits = (bits & larger) | (top_bits & ~larger);
        }
        int32_t largest = largest_of(top_bits);
        float top;
        memcpy(&top, &largest, sizeof top);
        float finer = top > 1e-30f ? 32512.0f / top : 0; /* 127 * 256: both digits fit in a signed byte */
        for (int i = 0; i < BLOCK; i += LONG) {
            /* Adding 1.5 * 2^23 rounds to a whole number. With 0x8080 more, each byte is a digit plus 128. */
            wi whole = (wi)fused((wf)load_words(x + i), all_of(finer), all_of(12582912.0f)) - 0x4b400000;
            wi bytes = (whole + 0x8080) ^ 0x8080;
            wb high = __builtin_convertvector(bytes >> 8, wb), low = __builtin_convertvector(bytes, wb);
            memcpy(taken->digits[0] + i, &high, sizeof high);
            memcpy(taken->digits[1] + i, &low, sizeof low);
            all += whole;
        }
        int32_t sum = total_of(all);
        taken->scale = top * (1 / 32512.0f);
        taken->sum = (float)sum;
        taken->shift = -128 * sum;
    }
}

/* Asks for what comes AHEAD bytes later, while this is computed with: the processor's own prefetch stops at a page. */
INLINE void fetch(const uint8_t *p, int bytes) {
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(p + AHEAD + at);
}

/* What 32 codes of each row and the digits of x give, plus `start`. The planes take turns, as each sum waits for the
 * one before. Codes of 4 bits: without VNNI their sums stay within 16 bits, 32 * 15 * 128 / 2 < 2^15. */
INLINE wi dots(const wi *codes, const Taken *x, wi start) {
    wi sums[2] = {{0}, start};
#ifndef __AVX512VNNI__
    __m256i pairs[2] = {0};
#endif
    UNROLLED for (int j = 0; j < 8; j++) {
        UNROLLED for (int plane = 0; plane < 2; plane++) {
            int32_t four;
            memcpy(&four, x->digits[plane] + 4 * j, sizeof four);
#ifdef __AVX512VNNI__
            sums[plane] = (wi)_mm512_dpbusd_epi32((__m512i)sums[plane], (__m512i)codes[j], _mm512_set1_epi32(four));
#else
            __m256i two = _mm256_maddubs_epi16((__m256i)codes[j], _mm256_set1_epi32(four));
            pairs[plane] = _mm256_add_epi16(pairs[plane], two);
#endif
        }
#ifndef __AVX512VNNI__ /* else gcc loads all of x before, and its 16 registers go to the stack */
        __asm__ volatile("" : "+x"(pairs[0]), "+x"(pairs[1]) : : "memory");
#endif
    }
#ifndef __AVX512VNNI__
    for (int plane = 0; plane < 2; plane++) sums[plane] += (wi)_mm256_madd_epi16(pairs[plane], _mm256_set1_epi16(1));
#endif
    return (sums[0] << 8) + sums[1]; /* of bytes at most 32 * 255 * 2^15 < 2^31 */
}

/* The same for codes of 8 bits. */
INLINE wi byte_dots(const wi *codes, const Taken *x) {
    wi start = (wi){0} + x->shift;
#ifdef __AVX512VNNI__
    return dots(codes, x, start);
#else
    wi half[8];
    UNROLLED for (int j = 0; j < 8; j++) half[j] = (codes[j] >> 4) & 0x0f0f0f0f;
    wi high = dots(half, x, (wi){0});
    UNROLLED for (int j = 0; j < 8; j++) half[j] = codes[j] & 0x0f0f0f0f;
    return (high << 4) + dots(half, x, start);
#endif
}

INLINE void q4_1(const uint8_t *p, const Taken *x, int64_t blocks, float *y, int64_t n, int rows) {
    wf total[PARTS][PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q4_BYTES, x++) {
        fetch(p, LANES * Q4_BYTES);
        UNROLLED for (int part = 0; part < PARTS; part++) {
            wi codes[8];
            UNROLLED for (int j = 0; j < 4; j++) {
                wi word = load_words(p + 4 * LANES * (j + 1) + 4 * LONG * part);
                codes[2 * j] = word & 0x0f0f0f0f;
                codes[2 * j + 1] = (word >> 4) & 0x0f0f0f0f;
            }
            wf d = load_f16(p + 2 * LONG * part), m = load_f16(p + 2 * LANES + 2 * LONG * part);
            EACH_ROW {
                const Taken *t = x + r * blocks;
                wf whole = __builtin_convertvector(dots(codes, t, (wi){0}), wf);
                wf one = fused(d, whole, m * all_of(t->sum));
                total[part][r] = fused(one, all_of(t->scale), total[part][r]);
            }
        }
    }
    EACH_ROW for (int part = 0; part < PARTS; part++) memcpy(y + r * n + LONG * part, &total[part][r], sizeof(wf));
}

INLINE void q8_0(const uint8_t *p, const Taken *x, int64_t blocks, float *y, int64_t n, int rows) {
    wf total[PARTS][PANEL_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q8_BYTES, x++) {
        fetch(p, LANES * Q8_BYTES);
        UNROLLED for (int part = 0; part < PARTS; part++) {
            wi codes[8];
            UNROLLED for (int j = 0; j < 8; j++) /* plus 128 */
                codes[j] = load_words(p + 2 * LANES + 4 * LANES * j + 4 * LONG * part) ^ (int32_t)0x80808080;
            wf d = load_f16(p + 2 * LONG * part);
            EACH_ROW {
                const Taken *t = x + r * blocks;
                wf whole = __builtin_convertvector(byte_dots(codes, t), wf);
                total[part][r] = fused(d * whole, all_of(t->scale), total[part][r]);
            }
        }
    }
    EACH_ROW for (int part = 0; part < PARTS; part++) memcpy(y + r * n + LONG * part, &total[part][r], sizeof(wf));
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

/* One row's block, 32 signed bytes after d, to its place among the 16 of a panel's block. */
static void pack_q8_0(const uint8_t *in, uint8_t *out, int row) {
    memcpy(out + 2 * row, in, 2);
    for (int j = 0; j < 8; j++) memcpy(out + 2 * LANES + 4 * LANES * j + 4 * row, in + 2 + 4 * j, 4);
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
