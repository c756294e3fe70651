#include "screen.h"

#include <math.h>

#include "pool.h"
#include "vec.h"

/* Up to 16 logits as integers in the same order; the last fills the missing ones. A NaN counts as the largest, so that
 * it becomes exact. */
static vi in_order(const float *logits, int64_t count) {
    vf x = splat(-INFINITY);
    memcpy(&x, logits, (size_t)count * sizeof(float));
    vi bits = (vi)x, high = {0};
    return (vi)choose(x == x, (vf)(bits ^ ((bits >> 31) & INT32_MAX)), (vf)(high + INT32_MAX));
}

/* Sort key of a logit: by number, then the lower index first. No two are equal, so the set of the best is unique. */
static uint64_t key_of(int32_t place, int64_t index) {
    return (uint64_t)((uint32_t)place ^ 0x80000000) << 32 | (uint32_t)~index;
}

static int64_t index_of(uint64_t key) { return (uint32_t)~key; }

static void swap(uint64_t *a, uint64_t *b) {
    uint64_t old = *a;
    *a = *b;
    *b = old;
}

/* Bring the `best` largest of n keys to the front. The inner loop has no branch: half of the predictions would be
 * wrong. */
static void select_best(uint64_t *keys, int64_t n, int64_t best) {
    int64_t low = 0, high = n - 1;
    while (best < n && low < high) {
        int64_t middle = low + (high - low) / 2, i = low;
        if (keys[middle] > keys[low]) swap(keys + middle, keys + low);
        if (keys[high] > keys[low]) swap(keys + high, keys + low);
        if (keys[middle] > keys[high]) swap(keys + middle, keys + high); /* the median of the three to the end */
        uint64_t pivot = keys[high];
        for (int64_t j = low; j < high; j++) {
            uint64_t key = keys[j];
            keys[j] = keys[i];
            keys[i] = key;
            i += key > pivot;
        }
        swap(keys + i, keys + high);
        if (best == i || best == i + 1) return;
        if (best < i) high = i - 1;
        else low = i + 1;
    }
}

typedef struct {
    const Matrix *w;
    const Screen *s;
    Product preview;    /* the product of the preview */
    const float *x;
    const Taken *taken; /* x in the form that panels take */
    float *y;
    uint64_t *tops;   /* key of the largest logit of each panel of 16 tokens */
    uint64_t *likely; /* keys of the tokens whose logits become exact */
    Private *mine;    /* where each thread makes a panel of the rows of 16 of them */
} Screening;

/* Compute panels [from, to) of the preview. */
static void preview_chunk(void *context, int64_t from, int64_t to) {
    const Screening *g = context;
    int64_t tokens = g->w->n;
    multiply_columns(&g->preview, from * LANES, to * LANES);
    for (int64_t panel = from; panel < to; panel++) {
        int64_t start = panel * LANES, count = tokens - start < LANES ? tokens - start : LANES;
        memcpy(g->y + start, g->preview.y + start, (size_t)count * sizeof(float));
        vi places = in_order(g->y + start, count);
        int32_t top = INT32_MIN;
        for (int i = 0; i < LANES; i++) top = places[i] > top ? places[i] : top;
        g->tops[panel] = key_of(top, panel);
    }
}

/* Compute the exact logits of tokens [from, to) of `likely`, to the bit as the whole head does: rows in blocks where
 * they lie, or, without a kernel for that, in a panel made of them, which stays in the thread's cache. */
static void exact_chunk(void *context, int64_t from, int64_t to) {
    const Screening *g = context;
    const Matrix *w = g->w;
    int64_t bytes = row_bytes(w), best = g->s->best < w->n ? g->s->best : w->n;
    if (w->kind == F32 || w->kind == BF16) {
        Product p = {.w = w, .x = g->x, .rows = 1, .y = g->y};
        for (int64_t i = from; i < to; i++) multiply_columns(&p, index_of(g->likely[i]), index_of(g->likely[i]) + 1);
        return;
    }
    uint8_t *panel = (uint8_t *)g->mine[pool_thread()].panel.at;
    for (; from < to; from += LANES) {
        const uint8_t *rows[LANES];
        float logits[LANES];
        int64_t count = to - from < LANES ? to - from : LANES, next = from + LANES;
        for (int64_t i = next; i < next + LANES && i < best; i++) /* they lie anywhere: prefetch the next ones */
            for (int64_t at = 0; at < bytes; at += 64)
                __builtin_prefetch(g->s->rows + index_of(g->likely[i]) * bytes + at);
        for (int64_t i = 0; i < LANES; i++)
            rows[i] = g->s->rows + index_of(g->likely[from + (i < count ? i : 0)]) * bytes;
        if (!rows_times(w->kind, rows, g->taken, w->k / BLOCK, logits)) {
            for (int i = 0; i < LANES; i++) pack_row(rows[i], panel, i, w->k, w->kind);
            panel_times(w->kind, panel, g->taken, w->k / BLOCK, 1, logits, LANES);
        }
        for (int64_t i = 0; i < count; i++) {
            int64_t token = index_of(g->likely[from + i]);
            g->y[token] = logits[i] + (w->bias ? w->bias[token] : 0);
        }
    }
}

/* Bring the most likely tokens to the front of `likely`. The smallest of the `best` largest panel tops is a lower bound
 * that few tokens reach, all of them in panels whose tops reach it. */
static void find_best(const Screening *g, int64_t best) {
    int64_t tokens = g->w->n, panels = (tokens + LANES - 1) / LANES, count = 0;
    uint64_t bound = 0;
    select_best(g->tops, panels, best);
    if (best < panels) {
        bound = g->tops[0];
        for (int64_t i = 1; i < best; i++)
            if (g->tops[i] < bound) bound = g->tops[i];
    }
    bound = bound >> 32 << 32; /* the number alone: equal ones count too */
    for (int64_t i = 0; i < panels; i++) {
        if (g->tops[i] < bound) continue;
        int64_t start = index_of(g->tops[i]) * LANES, end = start + LANES < tokens ? start + LANES : tokens;
        vi places = in_order(g->y + start, end - start);
        for (int64_t v = start; v < end; v++) {
            uint64_t key = key_of(places[v - start], v);
            g->likely[count] = key; /* counted, or overwritten next */
            count += key >= bound;
        }
    }
    select_best(g->likely, count, best);
}

void screened(const Matrix *w, const Screen *s, const float *x, float *y, Workspace *space) {
    int64_t panels = (w->n + LANES - 1) / LANES, best = s->best < w->n ? s->best : w->n;
    Product low = prepare(&s->project, x, NO_NORM, NULL, 1, space, space->low.at);
    multiply(&low, NULL);
    Screening g = {w, s, prepare(&s->codes, low.y, NO_NORM, NULL, 1, space, space->preview.at), x, NULL, y,
                   (uint64_t *)space->tops.at, (uint64_t *)space->likely.at, space->mine};
    parallel(preview_chunk, &g, panels, 32);
    find_best(&g, best);
    g.taken = (const Taken *)space->taken.at; /* for the exact logits */
    if (in_blocks(w)) prepare_input(x, w->k / BLOCK, (Taken *)space->taken.at);
    parallel(exact_chunk, &g, best, LANES);
}
