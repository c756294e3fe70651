#include "workspace.h"

#include <stdlib.h>

#include "panels.h"

static Workspace space;

/* Each size is taken from the matrix that writes or reads the buffer, so that no shape of a model can pass it by. */

static int fits(Buffer *b, int64_t floats) {
    if (b->floats >= floats) return 1;
    free(b->at);
    b->at = aligned_alloc(64, (size_t)(floats * 4 + 63) / 64 * 64);
    b->floats = b->at ? floats : 0;
    return b->at != NULL;
}

/* What `rows` of a matrix needs beside its input. */
static int sums_fit(const Matrix *w) { return fits(&space.sums, w->k / BLOCK); }

static int layer_fits(const Layer *l, const Plan *p, const Store *kv) {
    return sums_fit(&l->qkv) && sums_fit(&l->out) && sums_fit(&l->gate_up) && sums_fit(&l->down)
           && fits(&space.normed, l->qkv.k) && fits(&space.normed, l->gate_up.k)
           && fits(&space.heads, l->qkv.n) && fits(&space.scores, l->heads * kv->capacity)
           && fits(&space.mixed, l->out.k) && fits(&space.attended, l->out.n)
           && fits(&space.gate_up, l->gate_up.n) && fits(&space.output, l->down.n)
           && fits(&space.low, p->a.n) && fits(&space.correction, l->hidden);
}

Workspace *workspace_for_step(const Layer *layers, const Plan *plan, const Store *kv, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (!layer_fits(layers + i, plan + i, kv + i)) return NULL;
    return &space;
}

Workspace *workspace_for_matrix(const Matrix *w) {
    return sums_fit(w) && fits(&space.normed, w->k) ? &space : NULL;
}
