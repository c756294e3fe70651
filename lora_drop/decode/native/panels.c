#include "panels.h"

#include "abi.h"
#include "vec.h"

/* Each kernel is written once and compiled for each number of rows, so that all rows stay in registers. */
#define UNROLLED _Pragma("GCC unroll 8")
#define EACH_ROW UNROLLED for (int r = 0; r < rows; r++)
#ifdef __AVX512F__
#define FOR_EACH_COUNT(N) CASE(N, 1) CASE(N, 2) CASE(N, 3) CASE(N, 4) CASE(N, 5) CASE(N, 6) CASE(N, 7) CASE(N, 8)
#else
#define FOR_EACH_COUNT(N) CASE(N, 1) CASE(N, 2) CASE(N, 3) CASE(N, 4)
#endif

/* Vectors of the processor's length, PARTS of which hold the 16 rows. */
#if defined(__ARM_FEATURE_DOTPROD)
enum { LONG = 4 };
#elif defined(BYTE_DOTS) && !defined(__AVX512VNNI__)
enum { LONG = 8 };
#else
enum { LONG = 16 };
#endif
enum { NEAR = 2048, FAR = 16384, PARTS = LANES / LONG };
typedef float wf __attribute__((vector_size(4 * LONG)));
typedef int32_t wi __attribute__((vector_size(4 * LONG)));

INLINE wi load_words(const void *p) { wi v; memcpy(&v, p, sizeof v); return v; }
INLINE wf all_of(float x) { return x - (wf){0}; }
INLINE wf to_floats(wi v) { return __builtin_convertvector(v, wf); }

#ifdef BYTE_DOTS

typedef int8_t wb __attribute__((vector_size(LONG)));
typedef wi Numbers[8]; /* codes of 32 weights of each row, 4 a word */

#ifdef __AVX512VNNI__
INLINE wf fmadd(wf a, wf b, wf c) { return (wf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE wf load_f16(const uint8_t *p) { return from_f16(p); }
INLINE int32_t total_of(wi v) { return _mm512_reduce_add_epi32((__m512i)v); }
INLINE int32_t largest_of(wi v) { return _mm512_reduce_max_epi32((__m512i)v); }

INLINE wi add_dot(wi sum, wi codes, int32_t four) {
    return (wi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(four));
}
#elif defined(__ARM_FEATURE_DOTPROD)
INLINE wf fmadd(wf a, wf b, wf c) { return (wf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE wf load_f16(const uint8_t *p) { return (wf)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
INLINE int32_t total_of(wi v) { return vaddvq_s32((int32x4_t)v); }
INLINE int32_t largest_of(wi v) { return vmaxvq_s32((int32x4_t)v); }

INLINE wi add_dot(wi sum, wi codes, int32_t four) {
    return (wi)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, vreinterpretq_s8_s32(vdupq_n_s32(four)));
}
#else
#define PAIRS_OF_BYTES /* two instructions for a product, with sums of 16 bits between them */
INLINE wf fmadd(wf a, wf b, wf c) { return (wf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
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

void prepare_input(const float *x, int64_t blocks, Taken *taken) {
    for (; blocks > 0; blocks--, x += BLOCK, taken++) {
        wi top_bits = {0}, sums[2] = {0};
        for (int i = 0; i < BLOCK; i += LONG) { /* compares the bits, by which a NaN is the largest */
            wi bits = load_words(x + i) & INT32_MAX, larger = bits > top_bits;
            top_bits = (bits & larger) | (top_bits & ~larger);
        }
        int32_t largest = largest_of(top_bits);
        float top;
        memcpy(&top, &largest, sizeof top);
        float finer = top > 1e-30f ? 32512.0f / top : 0; /* 127 * 256: both digits fit in a signed byte */
        for (int i = 0; i < BLOCK; i += LONG) {
            /* Adding 1.5 * 2^23 rounds to a whole number. With 0x8080 more, each byte is a digit plus 128. */
            wi whole = (wi)fmadd((wf)load_words(x + i), all_of(finer), all_of(12582912.0f)) - 0x4b400000;
            wi bytes = (whole + 0x8080) ^ 0x8080;
            wb high = __builtin_convertvector(bytes >> 8, wb), low = __builtin_convertvector(bytes, wb);
            memcpy(taken->digits[0] + i, &high, sizeof high);
            memcpy(taken->digits[1] + i, &low, sizeof low);
            sums[i / HALF] += whole;
        }
        int32_t first = total_of(sums[0]), second = total_of(sums[1]);
        taken->scale = top * (1 / 32512.0f);
        taken->sum = (float)(first + second);
        taken->shifts[0] = -32 * first;
        taken->shifts[1] = -32 * second;
        taken->shift = -128 * (first + second);
    }
}

INLINE void load_block(const wi *words, int offset, const Taken *x, int64_t blocks, int rows, wi *codes) {
    (void)offset, (void)x, (void)blocks, (void)rows; /* the offset is subtracted from each row's sum */
    UNROLLED for (int j = 0; j < 8; j++) codes[j] = words[j];
}

/* Product of `words` words of codes of each row with the digits of x from word `at` on, plus `start`. Each addition
 * waits for the one before, so the two planes take turns, and of 8 words the even and the odd ones. In pairs of bytes the
 * sum of `together` words must fit in 16 bits: 8 words for codes of 4 bits (32 * 15 * 128 / 2 < 2^15), 2 for 6 bits. */
INLINE wi dots(const wi *codes, const Taken *x, int at, int words, int together, wi start) {
    wi sums[2][2] = {{{0}, start}};
#ifdef PAIRS_OF_BYTES
    __m256i pairs[2] = {0};
#else
    (void)together;
#endif
    UNROLLED for (int j = 0; j < words; j++) {
        UNROLLED for (int plane = 0; plane < 2; plane++) {
            int32_t four;
            memcpy(&four, x->digits[plane] + 4 * (at + j), sizeof four);
#ifdef PAIRS_OF_BYTES
            __m256i two = _mm256_maddubs_epi16((__m256i)codes[j], _mm256_set1_epi32(four));
            pairs[plane] = j % together ? _mm256_add_epi16(pairs[plane], two) : two;
#else
            wi *sum = &sums[words == 8 ? j % 2 : 0][plane];
            *sum = add_dot(*sum, codes[j], four);
#endif
        }
#ifdef PAIRS_OF_BYTES /* else gcc loads all of x first and spills its 16 registers */
        __asm__ volatile("" : "+x"(pairs[0]), "+x"(pairs[1]) : : "memory");
        for (int plane = 0; plane < 2 && j % together == together - 1; plane++)
            sums[0][plane] += (wi)_mm256_madd_epi16(pairs[plane], _mm256_set1_epi16(1));
#endif
    }
    /* At most 32 * 255 * 2^15 < 2^31 for codes of a byte. */
    return ((sums[0][0] + sums[1][0]) << 8) + (sums[0][1] + sums[1][1]);
}

/* Sum of 32 codes of 4 bits times row r of x, divided by its scale. */
INLINE wf times_nibbles(const wi *codes, const Taken *x, int r) {
    (void)r;
    return to_floats(dots(codes, x, 0, 8, 8, (wi){0}));
}

/* Of 32 codes of 8 bits, stored plus 128. */
INLINE wf times_bytes(const wi *codes, const Taken *x, int r) {
    (void)r;
#if defined(__ARM_FEATURE_DOTPROD) /* which multiplies signed codes */
    wi plain[8];
    UNROLLED for (int j = 0; j < 8; j++) plain[j] = codes[j] ^ (int32_t)0x80808080;
    return to_floats(dots(plain, x, 0, 8, 8, (wi){0}));
#elif !defined(PAIRS_OF_BYTES)
    return to_floats(dots(codes, x, 0, 8, 8, (wi){0} + x->shift));
#else
    wi start = (wi){0} + x->shift, half[8];
    UNROLLED for (int j = 0; j < 8; j++) half[j] = (codes[j] >> 4) & 0x0f0f0f0f;
    wi high = dots(half, x, 0, 8, 8, (wi){0});
    UNROLLED for (int j = 0; j < 8; j++) half[j] = codes[j] & 0x0f0f0f0f;
    return to_floats((high << 4) + dots(half, x, 0, 8, 8, start));
#endif
}

/* Of 16 codes of 6 bits, stored plus 32; exact in a float, as 16 * 32 * 32512 < 2^24. */
INLINE wf times_sixes(const wi *codes, const Taken *x, int r, int half) {
    (void)r;
    return to_floats(dots(codes + 4 * half, x, 4 * half, 4, 2, (wi){0} + x->shifts[half]));
}

#else

typedef wf Numbers[2][PANEL_ROWS]; /* product of each 16 weights with each row of x, all from one unpacking */

INLINE wf fmadd(wf a, wf b, wf c) { return madd(a, b, c); }
INLINE wf load_f16(const uint8_t *p) { return from_f16(p); }

void prepare_input(const float *x, int64_t blocks, Taken *taken) {
    for (; blocks > 0; blocks--, x += BLOCK, taken++) {
        taken->scale = 1;
        taken->sum = sum(loadf(x) + loadf(x + LANES));
        memcpy(taken->x, x, sizeof taken->x);
    }
}

INLINE void load_block(const wi *words, int offset, const Taken *x, int64_t blocks, int rows, wf (*sums)[PANEL_ROWS]) {
    for (int half = 0; half < 2; half++) {
        wf evens[PANEL_ROWS] = {0}, odds[PANEL_ROWS] = {0};
        UNROLLED for (int j = 4 * half; j < 4 * half + 4; j++)
            UNROLLED for (int i = 0; i < 4; i += 2) {
                wf even = to_floats(((words[j] >> 8 * i) & 255) - offset);
                wf odd = to_floats(((words[j] >> (8 * i + 8)) & 255) - offset);
                EACH_ROW evens[r] = fmadd(even, all_of(x[r * blocks].x[4 * j + i]), evens[r]);
                EACH_ROW odds[r] = fmadd(odd, all_of(x[r * blocks].x[4 * j + i + 1]), odds[r]);
            }
        EACH_ROW sums[half][r] = evens[r] + odds[r];
    }
}

INLINE wf times_nibbles(wf (*sums)[PANEL_ROWS], const Taken *x, int r) { (void)x; return sums[0][r] + sums[1][r]; }
INLINE wf times_bytes(wf (*sums)[PANEL_ROWS], const Taken *x, int r) { (void)x; return sums[0][r] + sums[1][r]; }
INLINE wf times_sixes(wf (*sums)[PANEL_ROWS], const Taken *x, int r, int half) { (void)x; return sums[half][r]; }

#endif

/* Prefetch FAR bytes further on into the second level, and NEAR bytes into the first, which has room for few lines on
 * their way. */
INLINE void fetch(const uint8_t *p, int bytes) {
    for (int at = 0; at < bytes; at += 64) {
        __builtin_prefetch(p + FAR + at, 0, 2);
        __builtin_prefetch(p + NEAR + at);
    }
}

/* Split words of 8 codes into words of 4, for 32 weights. */
INLINE void split_nibbles(const uint8_t *p, wi *words) {
    UNROLLED for (int j = 0; j < 4; j++) {
        wi word = load_words(p + 4 * LANES * j);
        words[2 * j] = word & 0x0f0f0f0f;
        words[2 * j + 1] = (word >> 4) & 0x0f0f0f0f;
    }
}

/* Add the product of 32 weights d code + m with each row of x to the row's total. */
INLINE void add_nibbles(const uint8_t *p, wf d, wf m, const Taken *x, int64_t blocks, wf *total, int rows) {
    wi words[8];
    Numbers numbers;
    split_nibbles(p, words);
    load_block(words, 0, x, blocks, rows, numbers);
    EACH_ROW {
        const Taken *t = x + r * blocks;
        wf product = fmadd(d, times_nibbles(numbers, t, r), m * all_of(t->sum));
        total[r] = fmadd(product, all_of(t->scale), total[r]);
    }
}

INLINE void q4(const uint8_t *p, const Taken *x, int64_t blocks, wf (*total)[PANEL_ROWS], int rows, int scales) {
    for (int64_t b = 0; b < blocks; b++, x++) {
        fetch(p, LANES * (2 * scales + NIBBLES));
        UNROLLED for (int part = 0; part < PARTS; part++) {
            wf d = load_f16(p + 2 * LONG * part);
            wf m = scales == 2 ? load_f16(p + 2 * LANES + 2 * LONG * part) : d * -8.0f;
            add_nibbles(p + 2 * LANES * scales + 4 * LONG * part, d, m, x, blocks, total[part], rows);
        }
        p += LANES * (2 * scales + NIBBLES);
    }
}

#define q4_0(...) q4(__VA_ARGS__, 1)
#define q4_1(...) q4(__VA_ARGS__, 2)

INLINE void q8_0(const uint8_t *p, const Taken *x, int64_t blocks, wf (*total)[PANEL_ROWS], int rows) {
    for (int64_t b = 0; b < blocks; b++, p += LANES * (2 + BLOCK), x++) {
        if (rows > 1) fetch(p, LANES * (2 + BLOCK));
        else /* both prefetches would make one row of a head a fifth slower */
            for (int at = 0; at < LANES * (2 + BLOCK); at += 64) __builtin_prefetch(p + 2 * NEAR + at);
        UNROLLED for (int part = 0; part < PARTS; part++) {
            wi words[8];
            Numbers numbers;
            UNROLLED for (int j = 0; j < 8; j++) /* stored plus 128 */
                words[j] = load_words(p + 2 * LANES + 4 * LANES * j + 4 * LONG * part) ^ (int32_t)0x80808080;
            load_block(words, 128, x, blocks, rows, numbers);
            wf d = load_f16(p + 2 * LONG * part);
            EACH_ROW {
                const Taken *t = x + r * blocks;
                total[part][r] = fmadd(d * times_bytes(numbers, t, r), all_of(t->scale), total[part][r]);
            }
        }
    }
}

/* Split words of numbers of 6 bits into bytes: those of the first four 32 weights, then those of the other four, whose
 * low 4 bits are in `low` and high 2 bits at the top of the first's bytes. */
INLINE void six_bits(wi first, wi low, wi *bytes) {
    bytes[0] = first & 0x3f3f3f3f;
    bytes[1] = (low & 0x0f0f0f0f) | ((first >> 2) & 0x30303030);
}

INLINE void q4_k(const uint8_t *p, const Taken *x, int64_t blocks, wf (*total)[PANEL_ROWS], int rows) {
    for (int64_t b = 0; b < blocks; b += SUPER / BLOCK) {
        wi scales[PARTS][2], minima[PARTS][2];
        wf d[PARTS], m[PARTS];
        fetch(p, LANES * (4 + K_SCALES));
        UNROLLED for (int part = 0; part < PARTS; part++) {
            wi words[3];
            for (int j = 0; j < 3; j++) words[j] = load_words(p + 4 * LANES * (1 + j) + 4 * LONG * part);
            six_bits(words[0], words[2], scales[part]);
            six_bits(words[1], words[2] >> 4, minima[part]);
            d[part] = load_f16(p + 2 * LONG * part);
            m[part] = -load_f16(p + 2 * LANES + 2 * LONG * part);
        }
        p += LANES * (4 + K_SCALES);
        for (int j = 0; j < SUPER / BLOCK; j++, p += LANES * NIBBLES, x++) {
            int shift = j % 4 * 8;
            fetch(p, LANES * NIBBLES);
            UNROLLED for (int part = 0; part < PARTS; part++) {
                wf block_d = d[part] * to_floats((scales[part][j / 4] >> shift) & 63);
                wf block_m = m[part] * to_floats((minima[part][j / 4] >> shift) & 63);
                add_nibbles(p + 4 * LONG * part, block_d, block_m, x, blocks, total[part], rows);
            }
        }
    }
}

INLINE void q6_k(const uint8_t *p, const Taken *x, int64_t blocks, wf (*total)[PANEL_ROWS], int rows) {
    for (int64_t b = 0; b < blocks; b += SUPER / BLOCK) {
        const uint8_t *head = p;
        fetch(p, LANES * (2 + K_SCALES_6));
        p += LANES * (2 + K_SCALES_6);
        for (int j = 0; j < SUPER / BLOCK; j++, p += LANES * (NIBBLES + HIGH_BITS), x++) {
            fetch(p, LANES * (NIBBLES + HIGH_BITS));
            UNROLLED for (int part = 0; part < PARTS; part++) {
                const uint8_t *codes = p + 4 * LONG * part;
                wf d = load_f16(head + 2 * LONG * part);
                wi words[8], scales = load_words(head + 2 * LANES + 4 * LANES * (j / 2) + 4 * LONG * part);
                Numbers numbers;
                split_nibbles(codes, words);
                UNROLLED for (int h = 0; h < 2; h++) {
                    wi high = load_words(codes + LANES * NIBBLES + 4 * LANES * h);
                    UNROLLED for (int c = 0; c < 4; c++)
                        words[4 * h + c] |= (c < 2 ? high << (4 - 2 * c) : high >> (2 * c - 4)) & 0x30303030;
                }
                load_block(words, 32, x, blocks, rows, numbers);
                wf first = d * to_floats((scales << (24 - j % 2 * 16)) >> 24);
                wf second = d * to_floats((scales << (16 - j % 2 * 16)) >> 24);
                EACH_ROW {
                    const Taken *t = x + r * blocks;
                    wf product = fmadd(first, times_sixes(numbers, t, r, 0), second * times_sixes(numbers, t, r, 1));
                    total[part][r] = fmadd(product, all_of(t->scale), total[part][r]);
                }
            }
        }
    }
}

/* y = a panel times N rows of x. */
#define CASE(NAME, ROWS) \
    case ROWS: { \
        wf total[PARTS][PANEL_ROWS] = {0}; \
        NAME(p, x, blocks, total, ROWS); \
        for (int r = 0; r < ROWS; r++) \
            for (int part = 0; part < PARTS; part++) memcpy(y + r * n + LONG * part, &total[part][r], sizeof(wf)); \
        return; \
    }
#define KERNEL(NAME) \
    static void times_##NAME(const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n) { \
        switch (count) { FOR_EACH_COUNT(NAME) } \
    }

KERNEL(q4_0)
KERNEL(q4_1)
KERNEL(q8_0)
KERNEL(q4_k)
KERNEL(q6_k)

void panel_times(int64_t kind, const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n) {
    switch (kind) {
    case Q4_0: return times_q4_0(p, x, blocks, count, y, n);
    case Q4_1: return times_q4_1(p, x, blocks, count, y, n);
    case Q8_0: return times_q8_0(p, x, blocks, count, y, n);
    case Q4_K: return times_q4_k(p, x, blocks, count, y, n);
    default: return times_q6_k(p, x, blocks, count, y, n);
    }
}

int rows_times(int64_t kind, const uint8_t *const *rows, const Taken *x, int64_t blocks, float *y) {
#ifdef BYTE_DOTS
    if (kind != Q8_0) return 0;
    vf total = {0};
    for (int64_t b = 0; b < blocks; b++, x++) {
        int16_t whole[BLOCK];
        int32_t sums[LANES];
        uint16_t scales[LANES];
        for (int i = 0; i < BLOCK; i++) whole[i] = (int16_t)(x->digits[0][i] * 256 + x->digits[1][i]);
        for (int r = 0; r < LANES; r++) {
            const uint8_t *block = rows[r] + b * (2 + BLOCK);
            const int8_t *codes = (const int8_t *)block + 2;
            int32_t sum = 0;
            for (int i = 0; i < BLOCK; i++) sum += codes[i] * whole[i];
            sums[r] = sum;
            memcpy(scales + r, block, 2);
        }
        vf products = from_f16(scales) * __builtin_convertvector(loadi(sums), vf);
        total = madd(products, splat(x->scale), total);
    }
    memcpy(y, &total, sizeof total);
    return 1;
#else
    (void)kind, (void)rows, (void)x, (void)blocks, (void)y;
    return 0;
#endif
}
