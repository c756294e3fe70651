#include "layer.h"

#include <math.h>

#include "matmul.h"
#include "pool.h"
#include "vec.h"

typedef struct {
    Product product; /* gate and up side by side, (rows, 2 width) */
    float *neurons;  /* silu(gate) * up, (rows, width) */
    Taken *taken;    /* the same in the form that panels take, made while the numbers are in cache; or NULL */
} Gate;

static void gate_chunk(void *context, int64_t from, int64_t to) {
    const Gate *g = context;
    const Product *p = &g->product;
    int64_t width = p->w->n / 2;
    multiply_columns(p, from, to);
    multiply_columns(p, width + from, width + to);
    for (int64_t r = 0; r < p->rows; r++) {
        const float *gate = p->y + 2 * r * width, *up = gate + width;
        float *y = g->neurons + r * width;
        int64_t i = from;
        for (; i + LANES <= to; i += LANES) {
            vf x = loadf(gate + i), out = x * loadf(up + i) / (1.0f + exponential(-x));
            memcpy(y + i, &out, sizeof out);
        }
        for (; i < to; i++) y[i] = gate[i] * up[i] / (1 + expf(-gate[i]));
        if (g->taken) prepare_input(y + from, (to - from) / BLOCK, g->taken + (r * width + from) / BLOCK);
    }
}

/* Write u + MLP to `output`. */
static void mlp(const Layer *l, const float *u, int64_t rows, Workspace *space) {
    float *neurons = space->neurons.at;
    Taken *taken = in_blocks(&l->down) ? (Taken *)space->neurons_taken.at : NULL;
    Product both = prepare(&l->gate_up, u, (Norm){l->mlp_norm, l->eps}, NULL, rows, space, space->gate_up.at);
    Gate g = {both, neurons, taken};
    parallel(gate_chunk, &g, l->gate_up.n / 2, COLUMNS);
    Product p = prepare(&l->down, neurons, NO_NORM, taken, rows, space, space->output.at);
    multiply(&p, u);
}

void run_full(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space) {
    attention(l, h, t, kv, space);
    mlp(l, space->attended.at, t->count, space);
}

/* d = scale * B (A h), (D,), with one thread: it takes less time than waking another. */
static const float *correct(const Layer *l, const Plan *p, const float *h, float scale, Workspace *space) {
    float *d = space->correction.at, *low = space->low.at;
    const Matrix *a = &p->a, *b = &p->b;
    int64_t n = l->hidden, rank = a->n;
    Product down = prepare(a, h, NO_NORM, NULL, 1, space, low);
    multiply_columns(&down, 0, rank);
    for (int64_t r = 0; r < rank; r++) low[r] *= scale;
    if (b->kind == Q8_0) {
        Product up = prepare(b, low, NO_NORM, NULL, 1, space, d);
        multiply_columns(&up, 0, n);
    } else {
        multiply_panels(b, low, d);
    }
    return d;
}

void run_dropped(const Layer *l, const Plan *p, const Step *s, const float *h, Workspace *space) {
    int64_t n = l->hidden;
    float *held = s->rule == SKIP ? NULL : p->hidden + s->held * n;
    const float *cached = held ? held : h, *d = p->a.n ? correct(l, p, h, s->scale, space) : NULL;
    float *u = s->attention_only ? space->attended.at : space->output.at;
    if (s->rule != RESIDUAL) memcpy(u, cached, (size_t)n * 4);
    else if (p->gate)
        for (int64_t i = 0; i < n; i++) u[i] = h[i] + p->gate[i] * cached[i];
    else
        for (int64_t i = 0; i < n; i++) u[i] = h[i] + cached[i];
    if (d)
        for (int64_t i = 0; i < n; i++) u[i] += d[i];
    if (s->rule == STATE) memcpy(held, u, (size_t)n * 4);
    if (s->attention_only) mlp(l, u, 1, space);
}
