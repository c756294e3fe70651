/* Vectors of 16 floats. The compiler maps them to the processor's width. */
#ifndef LD_VEC_H
#define LD_VEC_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are taken apart low byte first"
#endif

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 16, WIDTH = 4 * LANES };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

static inline vf loadf(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
static inline vi loadi(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }
static inline vh loadh(const void *p) { vh v; memcpy(&v, p, sizeof v); return v; }

static inline vf splat(float x) { return x - (vf){0}; }

/* a * b + c, rounded once if the processor can. Explicit, because the compiler may fuse an expression in one place and
 * not in another, and several rows together must give what each gives alone. */
static inline vf madd(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    typedef union { vf all; __m256 part[2]; } Parts;
    Parts x = {a}, y = {b}, z = {c};
    for (int i = 0; i < 2; i++) z.part[i] = _mm256_fmadd_ps(x.part[i], y.part[i], z.part[i]);
    return z.all;
#elif defined(__aarch64__)
    typedef union { vf all; float32x4_t part[4]; } Parts;
    Parts x = {a}, y = {b}, z = {c};
    for (int i = 0; i < 4; i++) z.part[i] = vfmaq_f32(z.part[i], x.part[i], y.part[i]);
    return z.all;
#else
    return a * b + c;
#endif
}

static inline vf from_bf16(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vf)((vi)_mm512_cvtepu16_epi32((__m256i)loadh(p)) << 16);
#else
    return (vf)(__builtin_convertvector(loadh(p), vi) << 16);
#endif
}

/* float16 to float. Without an instruction for it: shift its bits into place and scale by 2^112, which is exact for
 * subnormals too. */
static inline vf from_f16(const void *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)loadh(p));
#else
    vi h = __builtin_convertvector(loadh(p), vi);
    vf magnitude = (vf)((h & 0x7fff) << 13) * 0x1p112f;
    return (vf)((vi)magnitude | ((h & 0x8000) << 16));
#endif
}

static inline uint16_t to_bf16(float x) { /* to nearest, ties to even; a NaN stays a NaN */
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16) | 64;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float sum(vf v) { /* by halves: in a chain of 16 additions each would wait for the one before */
    float t[LANES];
    memcpy(t, &v, sizeof t);
    for (int l = 0; l < 8; l++) t[l] += t[l + 8];
    for (int l = 0; l < 4; l++) t[l] += t[l + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

static inline vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* The largest of n numbers; undefined if one is a NaN. */
static inline float largest(const float *x, int64_t n) {
    float top = -__builtin_inff(), tops[LANES];
    int64_t i = 0;
    if (n >= WIDTH) {
        vf most[WIDTH / LANES]; /* several, as each comparison waits for the one before */
        memcpy(most, x, sizeof most);
        for (i = WIDTH; i + WIDTH <= n; i += WIDTH)
            for (int v = 0; v < WIDTH / LANES; v++) {
                vf next = loadf(x + i + v * LANES);
                most[v] = choose(next <= most[v], most[v], next);
            }
        for (int v = 1; v < WIDTH / LANES; v++) most[0] = choose(most[v] <= most[0], most[0], most[v]);
        memcpy(tops, most, sizeof tops);
        for (int l = 0; l < LANES; l++)
            if (!(tops[l] <= top)) top = tops[l];
    }
    for (; i < n; i++)
        if (!(x[i] <= top)) top = x[i];
    return top;
}

/* e^x to about 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. x is clamped to [-87, 88]; a
 * NaN stays a NaN. */
static inline vf exponential(vf x) {
    const vf zero = {0};
    vf held = choose(x < -87.0f, zero - 87.0f, x);
    held = choose(held > 88.0f, zero + 88.0f, held);
    vf n = madd(held, splat(1.44269504f), splat(12582912.0f)); /* adding 1.5 * 2^23 rounds to a whole number */
    vi whole = (vi)n - 0x4b400000;
    n -= 12582912.0f;
    vf f = madd(n, splat(2.12194440e-4f), madd(n, splat(-0.693359375f), held));
    vf y = madd(splat(1.9875691500e-4f), f, splat(1.3981999507e-3f));
    y = madd(y, f, splat(8.3334519073e-3f));
    y = madd(y, f, splat(4.1665795894e-2f));
    y = madd(y, f, splat(1.6666665459e-1f));
    y = madd(y, f, splat(5.0000001201e-1f));
    y = madd(y * f, f, f) + 1.0f;
    return choose(x == x, y * (vf)((whole + 127) << 23), x);
}

#endif
