#include "layer.h"

#include <math.h>

#include "matmul.h"
#include "pool.h"
#include "vec.h"

typedef struct {
    const Layer *l;
    const float *x, *sums;
    float *gate, *up; /* (I,) each: silu(gate) * up ends in gate */
} Gate;

static void gate_chunk(void *context, int64_t from, int64_t to) {
    const Gate *g = context;
    const Matrix *w = &g->l->gate_up;
    int64_t inner = g->l->inner;
    rows(w, g->x, g->sums, from, to, g->gate);
    rows(w, g->x, g->sums, inner + from, inner + to, g->gate); /* up follows gate in the output too */
    int64_t r = from;
    for (; r + LANES <= to; r += LANES) {
        vf gate = loadf(g->gate + r), out = gate * loadf(g->up + r) / (1.0f + exponential(-gate));
        memcpy(g->gate + r, &out, sizeof out);
    }
    for (; r < to; r++) g->gate[r] *= g->up[r] / (1 + expf(-g->gate[r]));
}

/* u plus its MLP into `output`. */
static void mlp(const Layer *l, const float *u, Workspace *space) {
    float *x = space->normed.at, *sums = space->sums.at, *gate = space->gate_up.at;
    rms_norm(u, l->mlp_norm, x, l->hidden, l->eps);
    block_sums(&l->gate_up, x, sums);
    Gate g = {l, x, sums, gate, gate + l->inner};
    parallel(gate_chunk, &g, l->inner, chunk_of(&l->gate_up));
    multiply(&l->down, gate, sums, space->output.at, u);
}

void run_full(const Layer *l, const float *h, const Rope *rope, Store *kv, Workspace *space) {
    attention(l, h, rope, kv, space);
    mlp(l, space->attended.at, space);
}

/* d = scale * B (A h), (D,). Too little work for two threads: they would spend longer on meeting. */
static void correct(const Plan *p, const float *h, float scale, float *low, float *d) {
    int64_t n = p->a.k, rank = p->a.n;
    rows(&p->a, h, NULL, 0, rank, low);
    for (int64_t r = 0; r < rank; r++) low[r] *= scale;
    for (int64_t i = 0; i < n; i += WIDTH) {
        int64_t width = n - i < WIDTH ? n - i : WIDTH;
        if (p->bt.kind == F32) mix_f32((const float *)p->bt.data + i, low, rank, n, width, d + i);
        else mix_bf16((const uint16_t *)p->bt.data + i, low, rank, n, width, d + i);
    }
}

float run_dropped(const Layer *l, const Plan *p, const Step *s, const float *h, Workspace *space) {
    const float *cached = s->rule == SKIP ? h : p->hidden;
    float *d = space->correction.at, ratio = NAN;
    int64_t n = l->hidden;
    if (p->a.n) {
        correct(p, h, s->scale, space->low.at, d);
        if (s->ratios) ratio = sqrtf(dot_f32(d, d, n)) / sqrtf(dot_f32(cached, cached, n));
    } else {
        memset(d, 0, (size_t)n * 4);
    }
    float *u = s->attention_only ? space->attended.at : space->output.at;
    if (s->rule != RESIDUAL)
        for (int64_t i = 0; i < n; i++) u[i] = cached[i] + d[i];
    else if (p->gate)
        for (int64_t i = 0; i < n; i++) u[i] = h[i] + p->gate[i] * cached[i] + d[i];
    else
        for (int64_t i = 0; i < n; i++) u[i] = h[i] + cached[i] + d[i];
    if (s->rule == STATE) memcpy(p->hidden, u, (size_t)n * 4);
    if (s->attention_only) mlp(l, u, space);
    return ratio;
}
