#include "attention.h"

#include <math.h>
#include <stdatomic.h>

#include "matmul.h"
#include "pool.h"
#include "vec.h"

#define INLINE static inline __attribute__((always_inline))
enum { AHEAD = 32 };   /* keys that are prefetched ahead */
enum { TOGETHER = 4 }; /* heads that share keys and values, each number loaded once for all of them */
#ifdef __AVX512F__
enum { SPAN = 4 }; /* vectors of adjacent columns, of TOGETHER heads: as many as the registers hold */
#else
enum { SPAN = 1 };
#endif

/* Sums of 16 vectors. */
static inline vf totals(const vf *v) {
#ifdef __AVX512F__
    __m512 s[LANES];
    memcpy(s, v, sizeof s);
    for (int i = 0; i < LANES; i += 2)
        s[i / 2] = _mm512_add_ps(_mm512_unpacklo_ps(s[i], s[i + 1]), _mm512_unpackhi_ps(s[i], s[i + 1]));
    for (int i = 0; i < 8; i += 2) {
        __m512d left = (__m512d)s[i], right = (__m512d)s[i + 1];
        s[i / 2] = _mm512_add_ps((__m512)_mm512_unpacklo_pd(left, right), (__m512)_mm512_unpackhi_pd(left, right));
    }
    for (int n = 4; n > 1; n /= 2) /* quarters now hold four vectors each */
        for (int i = 0; i < n; i += 2)
            s[i / 2] = _mm512_add_ps(_mm512_shuffle_f32x4(s[i], s[i + 1], 0x88),
                                     _mm512_shuffle_f32x4(s[i], s[i + 1], 0xdd));
    return (vf)s[0];
#else
    vf all;
    for (int l = 0; l < LANES; l++) all[l] = sum(v[l]);
    return all;
#endif
}

/* scores: of `rows` queries (rows, hs) and `count` keys, (rows, SPLIT). mixes: sums of values (count, hs) with such
 * weights, some columns of each row of y. hs is a multiple of the vector's length. The values are prefetched while
 * scores are computed, and the keys that are read `next` while values are summed. */
#define OVER(NAME, TYPE, VECTOR) \
    INLINE void scores_##NAME(const TYPE *key, const TYPE *value, const float *q, int64_t hs, int64_t count, \
                              float scale, float *y, int rows) { \
        vf products[TOGETHER][LANES]; \
        for (int64_t t = 0; t < count; t++, key += hs, value += hs) { \
            vf s[TOGETHER] = {0}; \
            for (int64_t j = 0; j < hs; j += LANES) { \
                __builtin_prefetch(key + AHEAD * hs + j); \
                __builtin_prefetch(value + j); \
                vf part = VECTOR(key + j); \
                for (int r = 0; r < rows; r++) s[r] = madd(part, loadf(q + r * hs + j), s[r]); \
            } \
            for (int r = 0; r < rows; r++) products[r][t % LANES] = s[r]; \
            if (t % LANES != LANES - 1 && t != count - 1) continue; \
            for (int r = 0; r < rows; r++) { \
                vf sums = totals(products[r]) * scale; \
                memcpy(y + r * SPLIT + t / LANES * LANES, &sums, sizeof sums); \
            } \
        } \
    } \
    INLINE void mixes_##NAME(const TYPE *value, const TYPE *next, const float *weights, int64_t hs, int64_t count, \
                             float *y, int64_t stride, int rows, int vectors) { \
        vf s[TOGETHER][SPAN] = {0}; \
        for (int64_t t = 0; t < count; t++, value += hs, next += hs) \
            for (int c = 0; c < vectors; c++) { \
                __builtin_prefetch(next + c * LANES); \
                vf part = VECTOR(value + c * LANES); \
                for (int r = 0; r < rows; r++) s[r][c] = madd(part, splat(weights[r * SPLIT + t]), s[r][c]); \
            } \
        for (int r = 0; r < rows; r++) memcpy(y + r * stride, s[r], (size_t)vectors * sizeof(vf)); \
    } \
    INLINE void read_##NAME(const TYPE *keys, const TYPE *values, const TYPE *next, const float *q, int64_t hs, \
                            int64_t count, float scale, float *y, int64_t stride, int rows) { \
        float scores[TOGETHER * SPLIT] = {0}; \
        scores_##NAME(keys, values, q, hs, count, scale, scores, rows); \
        for (int r = 0; r < rows; r++) weigh(scores + r * SPLIT, count, y + r * stride + hs); \
        int64_t j = 0; \
        for (; j + SPAN * LANES <= hs; j += SPAN * LANES) \
            mixes_##NAME(values + j, next + j, scores, hs, count, y + j, stride, rows, SPAN); \
        for (; j < hs; j += LANES) \
            mixes_##NAME(values + j, next + j, scores, hs, count, y + j, stride, rows, 1); \
    }

typedef struct {
    Product product; /* (rows, nh + 2 nkv, hs): queries, keys, values */
    const Layer *l;
    const Tokens *t;
    const Store *kv;
} Projection;

/* Compute columns [from, to) of the product, which are whole heads: rotate queries and keys, and write K and V to the
 * store. */
static void project_chunk(void *context, int64_t from, int64_t to) {
    const Projection *a = context;
    const Layer *l = a->l;
    const Store *kv = a->kv;
    int64_t hs = l->head_dim, half = hs / 2;
    multiply_columns(&a->product, from, to);
    for (int64_t r = 0; r < a->t->count; r++) {
        const float *cosine = a->t->cosine + r * hs, *sine = a->t->sine + r * hs;
        float *head = a->product.y + r * l->qkv.n + from;
        for (int64_t i = from / hs; i < to / hs; i++, head += hs) {
            if (i < l->heads + l->kv_heads) {
                if (l->qk_norm) rms_norm(head, l->qk_norm + i * hs, head, 1, hs, l->eps);
                for (int64_t j = 0; j < half; j++) {
                    float first = head[j], second = head[j + half];
                    head[j] = first * cosine[j] - second * sine[j];
                    head[j + half] = second * cosine[j + half] + first * sine[j + half];
                }
            }
            if (i < l->heads) continue;
            int64_t place = ((i - l->heads) * kv->capacity + kv->length + r) * hs;
            if (kv->kind == F32) {
                memcpy((float *)kv->data + place, head, (size_t)hs * 4);
            } else {
                for (int64_t j = 0; j < hs; j++) ((uint16_t *)kv->data)[place + j] = to_bf16(head[j]);
            }
        }
    }
}

/* Write rotated queries, keys, and values of h to `heads`, and K and V to the store too. */
static void project(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space) {
    int64_t chunk = l->head_dim % LANES ? LANES * l->head_dim : l->head_dim; /* whole heads and whole panels */
    Norm norm = {l->attention_norm, l->eps};
    Product p = prepare(&l->qkv, h, norm, NULL, t->count, space, space->heads.at);
    parallel(project_chunk, &(Projection){p, l, t, kv}, l->qkv.n, chunk);
    kv->length += t->count;
}

/* Turn scores into weights in place, the largest 1; write the largest score and the sum of weights to `beside`. */
static void weigh(float *scores, int64_t count, float *beside) {
    int64_t t = 0;
    vf many = {0};
    float total = 0, top = largest(scores, count);
    for (; t + LANES <= count; t += LANES) {
        vf e = exponential(loadf(scores + t) - top);
        memcpy(scores + t, &e, sizeof e);
        many += e;
    }
    for (; t < count; t++) total += scores[t] = expf(scores[t] - top);
    beside[0] = top;
    beside[1] = total + sum(many);
}

OVER(f32, float, loadf)
OVER(bf16, uint16_t, from_bf16)

static float number(const void *data, int64_t at, int is_f32) {
    return is_f32 ? ((const float *)data)[at] : bf16_to_f32(((const uint16_t *)data)[at]);
}

/* The same for heads of any size, a number at a time: those of the models in use are multiples of 16. */
static void read_any(const void *keys, const void *values, int is_f32, const float *q, int64_t hs, int64_t count,
                     float scale, float *y) {
    float scores[SPLIT] = {0};
    for (int64_t i = 0; i < count * hs; i++) scores[i / hs] += scale * q[i % hs] * number(keys, i, is_f32);
    weigh(scores, count, y + hs);
    memset(y, 0, (size_t)hs * 4);
    for (int64_t i = 0; i < count * hs; i++) y[i % hs] += scores[i / hs] * number(values, i, is_f32);
}

/* The keys are split at fixed places, so that a row's result depends neither on the threads nor on the number of
 * rows. */
typedef struct {
    const Layer *l;
    const Store *kv;
    const float *heads;           /* of the first of `tokens` tokens */
    int64_t tokens, seen, splits; /* seen: tokens in the store up to the first, with itself */
    float *parts, *mixed;         /* parts: (tokens, nh, splits) of weighted values (hs,), top score, sum of weights */
    Taken *taken;                 /* mixed in the form that panels take, made while it is in cache; or NULL */
    _Atomic int32_t *done;        /* (tokens, nkv): splits whose parts are written */
} Attention;

static float *part_of(const Attention *a, int64_t token, int64_t head, int64_t split) {
    return a->parts + ((token * a->l->heads + head) * a->splits + split) * PART_FLOATS(a->l);
}

/* Keys of a K/V head from `first` on. */
static const char *keys_of(const Attention *a, int64_t kv_head, int64_t first) {
    int64_t size = a->kv->kind == F32 ? 4 : 2; /* bytes of a number */
    return (const char *)a->kv->data + (kv_head * a->kv->capacity + first) * a->l->head_dim * size;
}

/* Attend with `heads` heads of a token, which share a K/V head, to `count` keys from `first` on; write their parts. */
static void attend(const Attention *a, int64_t token, int64_t head, int64_t heads, int64_t first, int64_t count,
                   const char *next) {
    const Layer *l = a->l;
    int64_t hs = l->head_dim, stride = a->splits * PART_FLOATS(l), kv_head = head / (l->heads / l->kv_heads);
    int is_f32 = a->kv->kind == F32;
    const char *keys = keys_of(a, kv_head, first), *values = keys_of(a, l->kv_heads + kv_head, first);
    const float *q = a->heads + token * l->qkv.n + head * hs;
    float scale = 1 / sqrtf((float)hs), *part = part_of(a, token, head, first / SPLIT);
#define READ_AS(NAME, TYPE, N) \
    read_##NAME((const TYPE *)keys, (const TYPE *)values, (const TYPE *)next, q, hs, count, scale, part, stride, N)
#define READ(N) \
    case N: \
        if (is_f32) READ_AS(f32, float, N); \
        else READ_AS(bf16, uint16_t, N); \
        break;
    if (hs % LANES) {
        for (int64_t h = 0; h < heads; h++)
            read_any(keys, values, is_f32, q + h * hs, hs, count, scale, part + h * stride);
        return;
    }
    switch (heads) {
        READ(1)
        READ(2)
        READ(3)
        READ(4)
    }
#undef READ
#undef READ_AS
}

/* Join the parts of some heads of a token. */
static void join(const Attention *a, int64_t token, int64_t first, int64_t heads, int64_t splits) {
    int64_t hs = a->l->head_dim, n = a->l->out.k, start = token * n + first * hs;
    for (int64_t head = first; head < first + heads; head++) {
        float top = -INFINITY, total = 0, *mixed = a->mixed + token * n + head * hs;
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
    if (a->taken) prepare_input(a->mixed + start, heads * hs / BLOCK, a->taken + start / BLOCK);
}

/* Item i is a token of a K/V head of a split. Its keys are read once for all heads that share them, and stay in cache
 * for the next token. The thread that writes the last part of a head joins them. */
static void attend_split(void *context, int64_t from, int64_t to) {
    const Attention *a = context;
    const Layer *l = a->l;
    int64_t group = l->heads / l->kv_heads;
    for (int64_t i = from; i < to; i++) {
        int64_t token = i % a->tokens, at = i / a->tokens, first = at / l->kv_heads * SPLIT;
        int64_t kv_head = at % l->kv_heads, head = kv_head * group, splits = (a->seen + token + SPLIT - 1) / SPLIT;
        int64_t left = a->seen + token - first, count = left < SPLIT ? left : SPLIT;
        int64_t after = (i + 1) / a->tokens % (l->kv_heads * a->splits); /* the keys that this thread reads next */
        const char *next = keys_of(a, after % l->kv_heads, after / l->kv_heads * SPLIT);
        if (count <= 0) continue;
        for (int64_t h = 0; h < group; h += TOGETHER)
            attend(a, token, head + h, group - h < TOGETHER ? group - h : TOGETHER, first, count, next);
        int32_t done = atomic_fetch_add(a->done + token * l->kv_heads + kv_head, 1) + 1;
        if (done == splits) join(a, token, head, group, splits);
    }
}

void attention(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space) {
    int64_t seen = kv->length + 1, group = l->heads / l->kv_heads;
    Taken *taken = in_blocks(&l->out) && group * l->head_dim % BLOCK == 0 ? (Taken *)space->taken.at : NULL;
    project(l, h, t, kv, space);
    for (int64_t r = 0; r < t->count; r += QUERIES) {
        int64_t tokens = t->count - r < QUERIES ? t->count - r : QUERIES;
        int64_t splits = (seen + r + tokens - 1 + SPLIT - 1) / SPLIT;
        Attention a = {l, kv, space->heads.at + r * l->qkv.n, tokens, seen + r, splits, space->parts.at,
                       space->mixed.at + r * l->out.k, taken ? taken + r * l->out.k / BLOCK : NULL,
                       (_Atomic int32_t *)space->done.at};
        memset(space->done.at, 0, (size_t)(tokens * l->kv_heads) * 4);
        parallel(attend_split, &a, l->kv_heads * splits * tokens, 1);
    }
    Product p = prepare(&l->out, space->mixed.at, NO_NORM, taken, t->count, space, space->attended.at);
    multiply(&p, h);
}

void write_kv(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space) {
    int64_t queries = l->heads * l->head_dim;
    Layer only = *l; /* the rows of K and V alone: no queries are computed */
    only.qkv = rows_from(&l->qkv, queries);
    if (l->qk_norm) only.qk_norm = l->qk_norm + queries;
    only.heads = 0;
    project(&only, h, t, kv, space);
}
