/* Matrices times a few rows of x. Weights are read once and in place; activations are float32, or as precise. Each
 * row's result equals, to the bit, what it is alone. */
#ifndef LD_MATMUL_H
#define LD_MATMUL_H

#include "abi.h"
#include "panels.h"
#include "workspace.h"

/* Bytes of a row of K weights; in a matrix of several kinds, of the first kind. */
static inline int64_t row_bytes(const Matrix *w) {
    switch (w->kind) {
    case F32: return 4 * w->k;
    case BF16: return 2 * w->k;
    default: return blocks_bytes(w->kind, w->k);
    }
}

/* True if some of its rows are in blocks. */
static inline int in_blocks(const Matrix *w) {
    return (w->kind != F32 && w->kind != BF16) || (w->next && in_blocks(w->next));
}

/* The rows from `first` on, which in blocks begins a panel. */
Matrix rows_from(const Matrix *w, int64_t row);

/* A row of a matrix without blocks, as float32. */
void to_f32(const Matrix *w, int64_t row, float *y);

/* y = x / rms(x) * weight for each of `rows` rows x (n,). */
void rms_norm(const float *x, const float *weight, float *y, int64_t rows, int64_t n, float eps);

/* A norm before a matrix: its weight (D,), or NULL for none. */
typedef struct {
    const float *weight;
    float eps;
} Norm;

#define NO_NORM ((Norm){NULL, 0})

/* y (rows, N) = W x + bias for x (rows, K). */
typedef struct {
    const Matrix *w;
    const float *x;
    const Taken *taken; /* x in the form that panels take, (rows, K / 32), for weights in blocks */
    int64_t rows;
    float *y;
    Norm norm;          /* of x; only with `scratch` */
    Workspace *scratch; /* where each thread makes the norm, and the form that panels take; NULL: both are made */
    uint64_t number;    /* of this product among all */
} Product;

/* Prepare a product. Each thread makes the norm of x, and the form that panels take unless `taken` has it, for itself:
 * it takes less time than to get what another has written. */
Product prepare(const Matrix *w, const float *x, Norm norm, const Taken *taken, int64_t rows, Workspace *space,
                float *y);

/* Compute columns [from, to) of y; for blocks both are multiples of 16. */
void multiply_columns(const Product *p, int64_t from, int64_t to);

/* y (N,) = B x, for a B without blocks whose rows are side by side, (N / 16, K, 16). y has room for whole panels, as
 * each buffer of the workspace has. */
void multiply_panels(const Matrix *b, const float *x, float *y);

/* Columns of the least that a thread computes at a time: whole panels and whole blocks of y. */
enum { COLUMNS = BLOCK };

/* Compute the whole product with all threads, plus a residual (rows, N) unless NULL. */
void multiply(const Product *p, const float *residual);

#endif
