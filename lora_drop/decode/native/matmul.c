#include "matmul.h"

#include <math.h>

#include "pool.h"
#include "vec.h"

#define AS_IS(x) (x)
#define EACH_ROW _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)
enum { START = 4096 }; /* bytes */
enum { AHEAD = 8192, DOT_ROWS = 4 }; /* DOT_ROWS: their sums, 4 vectors each, fit in registers */

/* Kernels for rows of either number type. `dots` prefetches the weights AHEAD bytes further on, which this thread reads
 * next; rows of y and x have `n` and k numbers. */
#define OVER(NAME, TYPE, VECTOR, ONE) \
    INLINE void some_dots_##NAME(const TYPE *w, const float *x, int64_t k, float *y, int64_t n, int rows) { \
        vf a[DOT_ROWS] = {0}, b[DOT_ROWS] = {0}, c[DOT_ROWS] = {0}, d[DOT_ROWS] = {0}; \
        float rest[DOT_ROWS] = {0}; \
        int64_t i = 0; \
        for (; i + WIDTH <= k; i += WIDTH) { \
            __builtin_prefetch((const char *)(w + i) + AHEAD); \
            __builtin_prefetch((const char *)(w + i) + AHEAD + 64); \
            vf w0 = VECTOR(w + i), w1 = VECTOR(w + i + LANES); \
            vf w2 = VECTOR(w + i + 2 * LANES), w3 = VECTOR(w + i + 3 * LANES); \
            EACH_ROW a[r] = madd(w0, loadf(x + r * k + i), a[r]); \
            EACH_ROW b[r] = madd(w1, loadf(x + r * k + i + LANES), b[r]); \
            EACH_ROW c[r] = madd(w2, loadf(x + r * k + i + 2 * LANES), c[r]); \
            EACH_ROW d[r] = madd(w3, loadf(x + r * k + i + 3 * LANES), d[r]); \
        } \
        for (; i + LANES <= k; i += LANES) { \
            vf part = VECTOR(w + i); \
            EACH_ROW a[r] = madd(part, loadf(x + r * k + i), a[r]); \
        } \
        for (; i < k; i++) EACH_ROW rest[r] += ONE(w[i]) * x[r * k + i]; \
        EACH_ROW y[r * n] = sum((a[r] + b[r]) + (c[r] + d[r])) + rest[r]; \
    } \
    static void dots_##NAME(const TYPE *w, const float *x, int64_t k, float *y, int64_t n, int64_t rows) { \
        for (; rows > 0; rows -= DOT_ROWS, x += DOT_ROWS * k, y += DOT_ROWS * n) switch (rows) { \
            case 1: some_dots_##NAME(w, x, k, y, n, 1); break; \
            case 2: some_dots_##NAME(w, x, k, y, n, 2); break; \
            case 3: some_dots_##NAME(w, x, k, y, n, 3); break; \
            default: some_dots_##NAME(w, x, k, y, n, 4); \
            } \
    } \
    static void panels_##NAME(const TYPE *b, const float *x, int64_t k, int64_t n, float *y) { \
        for (int64_t i = 0; i < n; i += LANES, b += k * LANES) { \
            vf total = {0}; \
            for (int64_t j = 0; j < k; j++) total = madd(VECTOR(b + j * LANES), splat(x[j]), total); \
            memcpy(y + i, &total, sizeof total); \
        } \
    }

OVER(f32, float, loadf, AS_IS)
OVER(bf16, uint16_t, from_bf16, bf16_to_f32)

void to_f32(const Matrix *w, int64_t row, float *y) {
    const char *data = (const char *)w->data + row * row_bytes(w);
    if (w->kind == F32) memcpy(y, data, (size_t)w->k * 4);
    else
        for (int64_t i = 0; i < w->k; i++) y[i] = bf16_to_f32(((const uint16_t *)data)[i]);
}

void rms_norm(const float *x, const float *weight, float *y, int64_t rows, int64_t n, float eps) {
    for (; rows > 0; rows--, x += n, y += n) {
        float square;
        dots_f32(x, x, n, &square, 1, 1);
        float scale = 1 / sqrtf(square / (float)n + eps);
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
    }
}

void multiply_panels(const Matrix *b, const float *x, float *y) {
    if (b->kind == F32) panels_f32(b->data, x, b->k, b->n, y);
    else panels_bf16(b->data, x, b->k, b->n, y);
}

/* Rows in `data`. */
static int64_t rows_here(const Matrix *w) { return w->next ? w->n - w->next->n : w->n; }

Matrix rows_from(const Matrix *w, int64_t row) {
    const float *bias = w->bias ? w->bias + row : NULL;
    for (; w->next && row >= rows_here(w); w = w->next) row -= rows_here(w);
    return (Matrix){(const char *)w->data + row * row_bytes(w), bias, w->n - row, w->k, w->kind, w->next};
}

/* Compute columns [from, to) of w x; `y` is the place of column 0. */
static void multiply_rows(const Matrix *w, const Product *p, int64_t from, int64_t to, float *y) {
    int64_t here = rows_here(w), n = p->w->n, k = w->k, blocks = k / BLOCK, bytes = row_bytes(w);
    if (to > here) multiply_rows(w->next, p, from > here ? from - here : 0, to - here, y + here);
    const char *row = (const char *)w->data + from * bytes;
    if (to > here) to = here;
    if (w->kind == F32) {
        for (int64_t c = from; c < to; c++, row += bytes) dots_f32((const float *)row, p->x, k, y + c, n, p->rows);
    } else if (w->kind == BF16) {
        for (int64_t c = from; c < to; c++, row += bytes) dots_bf16((const uint16_t *)row, p->x, k, y + c, n, p->rows);
    } else {
        for (int64_t c = from; c < to; c += LANES, row += LANES * bytes)
            for (int64_t r = 0; r < p->rows; r += PANEL_ROWS) {
                int64_t count = p->rows - r < PANEL_ROWS ? p->rows - r : PANEL_ROWS;
                panel_times(w->kind, (const uint8_t *)row, p->taken + r * blocks, blocks, count, y + r * n + c, n);
            }
    }
}

/* Prefetch the weights that a thread begins with, while it prepares its input. */
static void fetch_start(const Matrix *w, int64_t row) {
    if (row >= rows_here(w)) return;
    const char *start = (const char *)w->data + row * row_bytes(w);
    for (int64_t at = 0; at < START; at += 64) __builtin_prefetch(start + at);
}

/* The product with this thread's input, which the thread makes once. */
static Product with_input(const Product *p, int64_t from) {
    Product product = *p;
    Private *mine = p->scratch->mine + pool_thread();
    if (p->norm.weight) product.x = mine->normed.at;
    if (!p->taken && in_blocks(p->w)) product.taken = (const Taken *)mine->taken.at;
    if (mine->number == p->number) return product;
    mine->number = p->number;
    fetch_start(p->w, from);
    if (p->norm.weight) rms_norm(p->x, p->norm.weight, mine->normed.at, p->rows, p->w->k, p->norm.eps);
    if (product.taken != p->taken) prepare_input(product.x, p->rows * (p->w->k / BLOCK), (Taken *)mine->taken.at);
    return product;
}

void multiply_columns(const Product *shared, int64_t from, int64_t to) {
    Product product = shared->scratch ? with_input(shared, from) : *shared, *p = &product;
    const Matrix *w = p->w;
    multiply_rows(w, p, from, to, p->y);
    if (w->bias)
        for (int64_t r = 0; r < p->rows; r++)
            for (int64_t c = from; c < to; c++) p->y[r * w->n + c] += w->bias[c];
}

Product prepare(const Matrix *w, const float *x, Norm norm, const Taken *taken, int64_t rows, Workspace *space,
                float *y) {
    Workspace *scratch = norm.weight || (in_blocks(w) && !taken) ? space : NULL;
    return (Product){w, x, taken, rows, y, norm, scratch, ++space->products};
}

typedef struct {
    const Product *product;
    const float *residual;
} Added;

static void product_chunk(void *context, int64_t from, int64_t to) {
    const Added *a = context;
    const Product *p = a->product;
    int64_t n = p->w->n;
    multiply_columns(p, from, to);
    if (a->residual)
        for (int64_t r = 0; r < p->rows; r++)
            for (int64_t c = from; c < to; c++) p->y[r * n + c] += a->residual[r * n + c];
}

void multiply(const Product *p, const float *residual) {
    Added a = {p, residual};
    parallel(product_chunk, &a, p->w->n, COLUMNS);
}
