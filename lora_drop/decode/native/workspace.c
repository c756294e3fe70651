#include "workspace.h"

#include <stdlib.h>

#include "matmul.h"
#include "vec.h"

#ifdef _WIN32
#include <malloc.h>
#define aligned_alloc(alignment, size) _aligned_malloc(size, alignment)
#define free _aligned_free
#endif

static Workspace space;

/* Each size comes from the matrix that writes or reads the buffer, so that it is right for a model of any shape. */

static int fits(Buffer *b, int64_t floats) {
    if (b->floats >= floats) return 1;
    free(b->at);
    b->at = aligned_alloc(64, (size_t)(floats * 4 + 63) / 64 * 64);
    b->floats = b->at ? floats : 0;
    return b->at != NULL;
}

static int blocks_fit(Buffer *b, const Matrix *w, int64_t rows) {
    return fits(b, rows * (w->k / BLOCK) * (int64_t)(sizeof(Taken) / 4));
}

/* Room for what each thread makes of the input. */
static int input_fits(const Matrix *w, int64_t rows) {
    for (int i = 0; i < pool_threads(); i++)
        if (!fits(&space.mine[i].normed, rows * w->k) || !blocks_fit(&space.mine[i].taken, w, rows)) return 0;
    return 1;
}

/* Room for the input, the output and the temporaries of a product of this matrix. */
static int product_fits(const Matrix *w, int64_t rows, Buffer *x, Buffer *y) {
    return input_fits(w, rows) && fits(x, rows * w->k) && fits(y, rows * w->n);
}

static int layer_fits(const Layer *l, const Plan *p, const Store *kv, int64_t rows) {
    int64_t queries = rows < QUERIES ? rows : QUERIES, splits = (kv->capacity + SPLIT - 1) / SPLIT;
    return product_fits(&l->qkv, rows, &space.normed, &space.heads)
           && product_fits(&l->out, rows, &space.mixed, &space.attended)
           && product_fits(&l->gate_up, rows, &space.normed, &space.gate_up)
           && product_fits(&l->down, rows, &space.neurons, &space.output)
           && blocks_fit(&space.neurons_taken, &l->down, rows)
           && fits(&space.done, queries * l->kv_heads)
           && fits(&space.parts, queries * l->heads * splits * PART_FLOATS(l)) && fits(&space.low, p->a.n)
           && input_fits(&p->a, 1) && input_fits(&p->b, 1) && blocks_fit(&space.taken, &l->out, rows)
           && fits(&space.correction, l->hidden);
}

Workspace *workspace_for_step(const Layer *layers, const Plan *plan, const Store *kv, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; i++)
        if (!layer_fits(layers + i, plan + i, kv + i, rows)) return NULL;
    return &space;
}

Workspace *workspace_for_matrix(const Matrix *w, int64_t rows) {
    return input_fits(w, rows) && fits(&space.normed, rows * w->k) ? &space : NULL;
}

Workspace *workspace_for_prompt(int64_t floats) { return fits(&space.packed, floats) ? &space : NULL; }

Workspace *workspace_for_screen(const Matrix *w, const Screen *s) {
    int64_t panels = (w->n + LANES - 1) / LANES;
    for (int i = 0; i < pool_threads(); i++)
        if (!fits(&space.mine[i].panel, LANES * row_bytes(w) / 4)) return NULL;
    return workspace_for_matrix(w, 1) && input_fits(&s->codes, 1) && blocks_fit(&space.taken, w, 1)
           && fits(&space.low, s->project.n) && fits(&space.preview, s->codes.n) && fits(&space.tops, 2 * panels)
           && fits(&space.likely, 2 * w->n + 2)
               ? &space
               : NULL;
}
