/* Vectors of 16 floats. The compiler makes them of whatever width the processor has. */
#ifndef LD_VEC_H
#define LD_VEC_H

#include <stdint.h>
#include <string.h>

enum { LANES = 16, WIDTH = 4 * LANES };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

static inline vf loadf(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
static inline vi loadi(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }
static inline vh loadh(const void *p) { vh v; memcpy(&v, p, sizeof v); return v; }

static inline vf from_bf16(const uint16_t *p) { return (vf)(__builtin_convertvector(loadh(p), vi) << 16); }

/* float16 by shifting its bits into place and scaling by 2^112, which is exact for subnormals too. */
static inline vf from_f16(const void *p) {
    vi h = __builtin_convertvector(loadh(p), vi);
    vf magnitude = (vf)((h & 0x7fff) << 13) * 0x1p112f;
    return (vf)((vi)magnitude | ((h & 0x8000) << 16));
}

static inline uint16_t to_bf16(float x) { /* to nearest, ties to even; NaN stays NaN */
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

static inline float sum(vf v) { /* by halves: a chain of 16 additions would wait for each */
    float t[LANES];
    memcpy(t, &v, sizeof t);
    for (int l = 0; l < 8; l++) t[l] += t[l + 8];
    for (int l = 0; l < 4; l++) t[l] += t[l + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

static inline vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* e^x to about 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Below -87 it is as good as 0,
 * above 88 as good as infinite; a NaN stays one. */
static inline vf exponential(vf x) {
    const vf zero = {0};
    vf held = choose(x < -87.0f, zero - 87.0f, x);
    held = choose(held > 88.0f, zero + 88.0f, held);
    vf n = held * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to a whole number */
    vi whole = (vi)n - 0x4b400000;
    n -= 12582912.0f;
    vf f = held - n * 0.693359375f + n * 2.12194440e-4f;
    vf y = 1.9875691500e-4f * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    return choose(x == x, y * (vf)((whole + 127) << 23), x);
}

#endif
