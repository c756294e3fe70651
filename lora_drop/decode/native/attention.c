#include "attention.h"

#include <math.h>

#include "matmul.h"
#include "pool.h"
#include "vec.h"

enum { JOINED = 64 }; /* parts that are joined without another thread: it would take longer to come */

/* A token's queries and keys rotated; K and V at place `at` of the store. */
static void turn_and_keep(const Layer *l, float *heads, const float *cosine, const float *sine, Store *kv, int64_t at) {
    int64_t hs = l->head_dim;
    for (int64_t i = 0; i < l->heads + l->kv_heads; i++) {
        float *head = heads + i * hs;
        if (l->qk_norm) rms_norm(head, l->qk_norm + i * hs, head, 1, hs, l->eps);
        for (int64_t j = 0; j < hs / 2; j++) {
            float one = head[j], two = head[j + hs / 2];
            head[j] = one * cosine[j] - two * sine[j];
            head[j + hs / 2] = two * cosine[j + hs / 2] + one * sine[j + hs / 2];
        }
    }
    for (int64_t i = 0; i < 2 * l->kv_heads; i++) {
        const float *from = heads + (l->heads + i) * hs;
        int64_t place = (i * kv->capacity + at) * hs;
        if (kv->kind == F32) {
            memcpy((float *)kv->data + place, from, (size_t)hs * 4);
        } else {
            for (int64_t j = 0; j < hs; j++) ((uint16_t *)kv->data)[place + j] = to_bf16(from[j]);
        }
    }
}

/* Queries, keys and values of h into `heads`, rotated; K and V also into the store. */
static void project(const Layer *l, const Pair *change, const float *h, const Tokens *t, Store *kv, Workspace *space) {
    int64_t hs = l->head_dim;
    float *x = space->normed.at, *heads = space->heads.at;
    rms_norm(h, l->attention_norm, x, t->count, l->hidden, l->eps);
    Product p = prepare(&l->qkv, change ? change + QKV : NULL, x, t->count, space, heads);
    multiply(&p, NULL);
    for (int64_t r = 0; r < t->count; r++)
        turn_and_keep(l, heads + r * l->qkv.n, t->cosine + r * hs, t->sine + r * hs, kv, kv->length++);
}

/* Scores to weights, the largest 1, in their place; returns their sum. */
static float weigh(float *scores, int64_t count, float top) {
    int64_t t = 0;
    vf many = {0};
    float total = 0;
    for (; t + LANES <= count; t += LANES) {
        vf e = exponential(loadf(scores + t) - top);
        memcpy(scores + t, &e, sizeof e);
        many += e;
    }
    for (; t < count; t++) total += scores[t] = expf(scores[t] - top);
    return total + sum(many);
}

/* The keys are split at fixed places, so that each row's result is the same whoever reads which part and however many
 * rows there are. */
typedef struct {
    const Layer *l;
    const Store *kv;
    const float *heads;           /* of the first of `tokens` tokens */
    int64_t tokens, seen, splits; /* what the store holds up to the first, itself included */
    float *parts, *mixed;         /* of each token, head and split: weighted values (hs,), top score, sum of weights */
} Attention;

static float *part_of(const Attention *a, int64_t token, int64_t head, int64_t split) {
    return a->parts + ((token * a->l->heads + head) * a->splits + split) * PART_FLOATS(a->l);
}

/* A head of a token over `count` keys, those from `first` on. */
static void attend(const Attention *a, int64_t head, const float *q, int64_t first, int64_t count, float *part) {
    const Layer *l = a->l;
    int64_t hs = l->head_dim, group = l->heads / l->kv_heads;
    float scale = 1 / sqrtf((float)hs), top = -INFINITY, scores[SPLIT];
    int is_f32 = a->kv->kind == F32;
    int64_t bytes = a->kv->capacity * hs * (is_f32 ? 4 : 2); /* of a head's keys, and of its values */
    const char *keys = (const char *)a->kv->data + head / group * bytes, *values = keys + l->kv_heads * bytes;
    const float *k32 = (const float *)keys + first * hs, *v32 = (const float *)values + first * hs;
    const uint16_t *k16 = (const uint16_t *)keys + first * hs, *v16 = (const uint16_t *)values + first * hs;
    for (int64_t t = 0; t < count; t++) {
        scores[t] = scale * (is_f32 ? dot_f32(k32 + t * hs, q, hs) : dot_bf16(k16 + t * hs, q, hs));
        if (!(scores[t] <= top)) top = scores[t]; /* a NaN goes through */
    }
    part[hs] = top;
    part[hs + 1] = weigh(scores, count, top);
    for (int64_t j = 0; j < hs; j += WIDTH) { /* a few columns at a time stay in registers */
        int64_t width = hs - j < WIDTH ? hs - j : WIDTH;
        if (is_f32) mix_f32(v32 + j, scores, count, hs, width, part + j);
        else mix_bf16(v16 + j, scores, count, hs, width, part + j);
    }
}

/* What a head of a token has read, from its parts. Item i is head i % heads of token i / heads. */
static void join_parts(void *context, int64_t from, int64_t to) {
    const Attention *a = context;
    int64_t heads = a->l->heads, hs = a->l->head_dim;
    for (int64_t i = from; i < to; i++) {
        int64_t token = i / heads, head = i % heads, splits = (a->seen + token + SPLIT - 1) / SPLIT;
        float top = -INFINITY, total = 0, *mixed = a->mixed + token * a->l->out.k + head * hs;
        for (int64_t s = 0; s < splits; s++) {
            float x = part_of(a, token, head, s)[hs];
            if (!(x <= top)) top = x;
        }
        memset(mixed, 0, (size_t)hs * 4);
        for (int64_t s = 0; s < splits; s++) {
            const float *part = part_of(a, token, head, s);
            float weight = expf(part[hs] - top);
            total += weight * part[hs + 1];
            for (int64_t j = 0; j < hs; j++) mixed[j] += weight * part[j];
        }
        for (int64_t j = 0; j < hs; j++) mixed[j] /= total;
    }
}

/* Item i is a K/V head of a split: its keys are read once for all tokens and heads that look at them. */
static void attend_split(void *context, int64_t from, int64_t to) {
    const Attention *a = context;
    const Layer *l = a->l;
    int64_t group = l->heads / l->kv_heads;
    for (int64_t i = from; i < to; i++) {
        int64_t split = i / l->kv_heads, first = split * SPLIT, head = i % l->kv_heads * group;
        for (int64_t r = 0; r < a->tokens; r++) {
            int64_t count = a->seen + r - first;
            const float *q = a->heads + r * l->qkv.n + head * l->head_dim;
            for (int64_t h = 0; h < group && count > 0; h++, q += l->head_dim)
                attend(a, head + h, q, first, count < SPLIT ? count : SPLIT, part_of(a, r, head + h, split));
        }
    }
}

void attention(const Layer *l, const Pair *change, const float *h, const Tokens *t, Store *kv, Workspace *space) {
    int64_t seen = kv->length + 1;
    project(l, change, h, t, kv, space);
    for (int64_t r = 0; r < t->count; r += QUERIES) {
        int64_t tokens = t->count - r < QUERIES ? t->count - r : QUERIES;
        int64_t splits = (seen + r + tokens - 1 + SPLIT - 1) / SPLIT;
        Attention a = {l, kv, space->heads.at + r * l->qkv.n, tokens, seen + r, splits, space->parts.at,
                       space->mixed.at + r * l->out.k};
        parallel(attend_split, &a, l->kv_heads * splits, 1);
        parallel(join_parts, &a, l->heads * tokens, JOINED / splits + 1);
    }
    Product p = prepare(&l->out, change ? change + OUT : NULL, space->mixed.at, t->count, space, space->attended.at);
    multiply(&p, h);
}

void write_kv(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space) {
    int64_t queries = l->heads * l->head_dim;
    Layer only = *l; /* the rows of k and v alone: queries are neither read nor turned */
    only.qkv.data = (const char *)l->qkv.data + queries * row_bytes(&l->qkv);
    only.qkv.n -= queries;
    if (l->qkv.bias) only.qkv.bias = l->qkv.bias + queries;
    if (l->qk_norm) only.qk_norm = l->qk_norm + queries;
    only.heads = 0;
    project(&only, NULL, h, t, kv, space);
}
