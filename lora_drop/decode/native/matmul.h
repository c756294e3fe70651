/* Matrices times vectors. Weights are read once and in place; activations are float32. */
#ifndef LD_MATMUL_H
#define LD_MATMUL_H

#include "abi.h"
#include "panels.h"

/* Bytes of a row of K weights. */
static inline int64_t row_bytes(const Matrix *w) {
    switch (w->kind) {
    case F32: return 4 * w->k;
    case BF16: return 2 * w->k;
    default: return w->k / BLOCK * (w->kind == Q4_1 ? Q4_BYTES : Q8_BYTES);
    }
}

/* dot: w . x over k numbers. mix: sums of `count` weighted rows, `width` (at most WIDTH) of their columns; `stride` is
 * the length of a row. */
float dot_f32(const float *w, const float *x, int64_t k);
float dot_bf16(const uint16_t *w, const float *x, int64_t k);
void mix_f32(const float *v, const float *weights, int64_t count, int64_t stride, int64_t width, float *y);
void mix_bf16(const uint16_t *v, const float *weights, int64_t count, int64_t stride, int64_t width, float *y);

void rms_norm(const float *x, const float *weight, float *y, int64_t n, float eps);

/* Rows [from, to) of y = W x + bias; for blocks both are multiples of 16. `sums`: see `block_sums`. */
void rows(const Matrix *w, const float *x, const float *sums, int64_t from, int64_t to, float *y);

/* Sums of x over blocks, (K / 32,), if the matrix is of a kind that needs them. */
void block_sums(const Matrix *w, const float *x, float *sums);

/* Rows that a thread takes at a time. */
int64_t chunk_of(const Matrix *w);

/* y = W x + bias + residual (or NULL), by all threads. `sums` is room for `block_sums`. */
void multiply(const Matrix *w, const float *x, float *sums, float *y, const float *residual);

#endif
