#include "matmul.h"

#include <math.h>

#include "pool.h"
#include "vec.h"

#define AS_IS(x) (x)
enum { AHEAD = 8192, CHUNK_BYTES = 32768 };

/* The same over rows of either number type. `dot` fetches what lies AHEAD bytes further on, which is what this thread
 * reads next. `mix` keeps its columns in registers where there are WIDTH of them. */
#define OVER(NAME, TYPE, VECTOR, ONE) \
    float dot_##NAME(const TYPE *w, const float *x, int64_t k) { \
        vf a = {0}, b = {0}, c = {0}, d = {0}; \
        int64_t i = 0; \
        for (; i + WIDTH <= k; i += WIDTH) { \
            __builtin_prefetch((const char *)(w + i) + AHEAD); \
            __builtin_prefetch((const char *)(w + i) + AHEAD + 64); \
            a += VECTOR(w + i) * loadf(x + i); \
            b += VECTOR(w + i + LANES) * loadf(x + i + LANES); \
            c += VECTOR(w + i + 2 * LANES) * loadf(x + i + 2 * LANES); \
            d += VECTOR(w + i + 3 * LANES) * loadf(x + i + 3 * LANES); \
        } \
        for (; i + LANES <= k; i += LANES) a += VECTOR(w + i) * loadf(x + i); \
        float rest = 0; \
        for (; i < k; i++) rest += ONE(w[i]) * x[i]; \
        return sum((a + b) + (c + d)) + rest; \
    } \
    void mix_##NAME(const TYPE *v, const float *weights, int64_t count, int64_t stride, int64_t width, float *y) { \
        if (width == WIDTH) { \
            vf a = {0}, b = {0}, c = {0}, d = {0}; \
            for (int64_t t = 0; t < count; t++, v += stride) { \
                a += VECTOR(v) * weights[t]; \
                b += VECTOR(v + LANES) * weights[t]; \
                c += VECTOR(v + 2 * LANES) * weights[t]; \
                d += VECTOR(v + 3 * LANES) * weights[t]; \
            } \
            memcpy(y, (vf[]){a, b, c, d}, 4 * sizeof a); \
            return; \
        } \
        for (int64_t j = 0; j < width; j++) { \
            float total = 0; \
            for (int64_t t = 0; t < count; t++) total += ONE(v[t * stride + j]) * weights[t]; \
            y[j] = total; \
        } \
    }

OVER(f32, float, loadf, AS_IS)
OVER(bf16, uint16_t, from_bf16, bf16_to_f32)

void rms_norm(const float *x, const float *weight, float *y, int64_t n, float eps) {
    float square = dot_f32(x, x, n), scale = 1 / sqrtf(square / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

void rows(const Matrix *w, const float *x, const float *sums, int64_t from, int64_t to, float *y) {
    int64_t k = w->k, blocks = k / BLOCK, bytes = row_bytes(w);
    const char *row = (const char *)w->data + from * bytes;
    switch (w->kind) {
    case F32:
        for (int64_t r = from; r < to; r++, row += bytes) y[r] = dot_f32((const float *)row, x, k);
        break;
    case BF16:
        for (int64_t r = from; r < to; r++, row += bytes) y[r] = dot_bf16((const uint16_t *)row, x, k);
        break;
    case Q4_1:
        for (int64_t r = from; r < to; r += LANES, row += LANES * bytes)
            panel_q4_1((const uint8_t *)row, x, sums, blocks, y + r);
        break;
    case Q8_0:
        for (int64_t r = from; r < to; r += LANES, row += LANES * bytes)
            panel_q8_0((const uint8_t *)row, x, blocks, y + r);
        break;
    }
    if (w->bias)
        for (int64_t r = from; r < to; r++) y[r] += w->bias[r];
}

void block_sums(const Matrix *w, const float *x, float *sums) {
    if (w->kind != Q4_1) return;
    for (int64_t b = 0; b < w->k / BLOCK; b++) {
        sums[b] = sum(loadf(x + b * BLOCK) + loadf(x + b * BLOCK + LANES));
    }
}

int64_t chunk_of(const Matrix *w) {
    int64_t count = CHUNK_BYTES / row_bytes(w) / LANES * LANES; /* in whole panels */
    return count < LANES ? LANES : count;
}

typedef struct {
    const Matrix *w;
    const float *x, *sums;
    float *y;
    const float *residual;
} Product;

static void product_chunk(void *context, int64_t from, int64_t to) {
    const Product *p = context;
    rows(p->w, p->x, p->sums, from, to, p->y);
    if (p->residual)
        for (int64_t r = from; r < to; r++) p->y[r] += p->residual[r];
}

void multiply(const Matrix *w, const float *x, float *sums, float *y, const float *residual) {
    block_sums(w, x, sums);
    Product p = {w, x, sums, y, residual};
    parallel(product_chunk, &p, w->n, chunk_of(w));
}
