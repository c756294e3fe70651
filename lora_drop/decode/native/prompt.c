/* Attention of a prompt: many queries at once over the layer's store.
 *
 * 64 queries are side by side in the lanes: one broadcast of a key's number serves them all, and a query's softmax
 * stays in its lane. Keys are read in blocks from the first one on, so that a query's result depends only on the keys
 * before it. If the processor multiplies bfloat16, a word holds two neighbouring numbers; otherwise all is float32.
 */
#include <math.h>

#include "abi.h"
#include "pool.h"
#include "vec.h"
#include "workspace.h"

enum { SIDE = 64, VECTORS = SIDE / LANES, KEYS = 64, MOST_HEAD = 256, AT_ONCE = 4 };
#ifdef __AVX512F__
enum { SPAN = VECTORS }; /* vectors of a tile: as many as the registers hold */
static inline vi everywhere(int32_t x) { return (vi)_mm512_set1_epi32(x); }
#define STAYS(v) __asm__("" : "+v"(v)) /* in a register: else GCC reloads it for each use */
#else
enum { SPAN = 1 };
#define STAYS(v)
static inline vi everywhere(int32_t x) {
    vi v; /* GCC 12 crashes at `x - (vi){0}` here */
    for (int l = 0; l < LANES; l++) v[l] = x;
    return v;
}
#endif

#ifdef __AVX512BF16__
static inline vf pairs_madd(vi a, vi b, vf c) { return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }
static inline vi to_pairs(vf low, vf high) {
    vi first = (vi)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low));
    vi second = (vi)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high));
    return first | second << 16;
}
enum { HAS_PAIRS = 1 };
#else
static inline vf pairs_madd(vi a, vi b, vf c) { (void)a, (void)b; return c; }
static inline vi to_pairs(vf low, vf high) { (void)high; return (vi)low; }
enum { HAS_PAIRS = 0 };
#endif

typedef struct {
    const Layer *l;
    const Store *kv;
    int64_t tokens;                /* the last tokens of the store */
    int pairs;                     /* true if a word holds two bfloat16 */
    const int32_t *keys, *values;  /* words of the first head */
    int64_t key_head, value_head;  /* words from one head to the next */
    int32_t *packed;
    const void *query; /* (tokens, nh, hs) */
    void *mixed;
} Prompt;

/* out (rows, 64) = or += a b: element (i, j) of a is at a[i * down + j * along]; b (n, 64). */
static inline __attribute__((always_inline)) void tile(const int32_t *a, int64_t down, int64_t along, int rows,
                                                       const int32_t *b, int64_t n, int adds, int pairs, float *out) {
    for (int v = 0; v < VECTORS; v += SPAN) {
        vf sums[AT_ONCE][SPAN];
        for (int i = 0; i < rows; i++)
            for (int w = 0; w < SPAN; w++) sums[i][w] = adds ? loadf(out + i * SIDE + (v + w) * LANES) : (vf){0};
        for (int64_t j = 0; j < n; j++) {
            vi lanes[SPAN];
            for (int w = 0; w < SPAN; w++) {
                lanes[w] = loadi(b + j * SIDE + (v + w) * LANES);
                STAYS(lanes[w]);
            }
            for (int i = 0; i < rows; i++) {
                int32_t word; /* of memory that may have been written as float */
                memcpy(&word, a + i * down + j * along, sizeof word);
                vi number = everywhere(word);
                for (int w = 0; w < SPAN; w++) {
                    if (pairs) sums[i][w] = pairs_madd(number, lanes[w], sums[i][w]);
                    else sums[i][w] = madd((vf)number, (vf)lanes[w], sums[i][w]);
                }
            }
        }
        for (int i = 0; i < rows; i++)
            for (int w = 0; w < SPAN; w++) memcpy(out + i * SIDE + (v + w) * LANES, &sums[i][w], sizeof(vf));
    }
}

static inline __attribute__((always_inline)) void tiles(const int32_t *a, int64_t down, int64_t along, int64_t rows,
                                                        const int32_t *b, int64_t n, int adds, int pairs, float *out) {
    int64_t i = 0;
    for (; i + AT_ONCE <= rows; i += AT_ONCE)
        tile(a + i * down, down, along, AT_ONCE, b, n, adds, pairs, out + i * SIDE);
    for (; i < rows; i++) tile(a + i * down, down, along, 1, b, n, adds, pairs, out + i * SIDE);
}

/* Softmax of 64 queries, each in its lane. */
typedef struct {
    float top[SIDE], total[SIDE];
    int32_t last[SIDE]; /* last key that each query sees */
} Running;

/* e^(x * scale + least) for exponents that are at most slightly above 0, to 3e-7; a NaN stays a NaN. */
static inline vf weight_of(vf x, float scale, vf least) {
#ifdef __AVX512F__ /* 2^n times a power series: half of the steps of `exponential` */
    __m512 t = (__m512)madd(x, splat(scale * 1.44269504f), least * 1.44269504f);
    t = _mm512_max_ps(_mm512_set1_ps(-126), t);
    __m512 n = _mm512_roundscale_ps(t, 8);
    vf f = (vf)_mm512_sub_ps(t, n), y = madd(splat(1.5403530e-4f), f, splat(1.3333558e-3f));
    y = madd(y, f, splat(9.6181291e-3f));
    y = madd(y, f, splat(5.5504109e-2f));
    y = madd(y, f, splat(2.4022651e-1f));
    y = madd(y, f, splat(6.9314718e-1f));
    return (vf)_mm512_scalef_ps((__m512)madd(y, f, splat(1)), n);
#else
    return exponential(madd(x, splat(scale), least));
#endif
}

/* Turn scores (count, 64) of the keys from `first` on into weights in place, and rescale the sums so far. */
static void weigh(float *scores, int64_t first, int64_t count, float scale, int pairs, Running *r, float *sums,
                  int64_t hs) {
    int hides = first + count - 1 > r->last[0]; /* some queries do not see all of these keys */
    for (int v = 0; v < VECTORS; v++) {
        vf before = loadf(r->top + v * LANES), top = before, total = loadf(r->total + v * LANES);
        vi last = loadi(r->last + v * LANES);
        float *s = scores + v * LANES;
        for (int64_t k = 0; k < count; k++) {
            vf x = loadf(s + k * SIDE);
            if (hides) {
                x = choose((int32_t)(first + k) > last, splat(-INFINITY), x);
                memcpy(s + k * SIDE, &x, sizeof x);
            }
            top = choose(x > top, x, top);
        }
        vi grew = top > before;
        if (memcmp(&top, &before, sizeof top)) {
            vf shrink = choose(grew, exponential((before - top) * scale), splat(1));
            total *= shrink;
            for (int64_t c = 0; c < hs; c++) {
                vf y = loadf(sums + c * SIDE + v * LANES) * shrink;
                memcpy(sums + c * SIDE + v * LANES, &y, sizeof y);
            }
            memcpy(r->top + v * LANES, &top, sizeof top);
        }
        vf least = -top * scale;
        for (int64_t k = 0; k < count; k += 1 + pairs) {
            vf weight = weight_of(loadf(s + k * SIDE), scale, least), next = {0};
            if (pairs && k + 1 < count) next = weight_of(loadf(s + (k + 1) * SIDE), scale, least);
            total += weight + next;
            vi word = pairs ? to_pairs(weight, next) : (vi)weight;
            memcpy(s + (pairs ? k / 2 : k) * SIDE, &word, sizeof word);
        }
        memcpy(r->total + v * LANES, &total, sizeof total);
    }
}

/* Item i of a K/V head: 64 queries, the heads of a token, then those of the next. */
static inline __attribute__((always_inline)) void attend_side(const Prompt *p, int64_t head, int64_t from, int pairs) {
    const Layer *l = p->l;
    int64_t hs = l->head_dim, group = l->heads / l->kv_heads, rows = p->tokens * group, words = pairs ? hs / 2 : hs;
    int64_t past = p->kv->length - p->tokens, most = from + SIDE < rows ? from + SIDE : rows;
    int64_t seen = past + (most - 1) / group + 1;
    _Alignas(64) int32_t queries[MOST_HEAD * SIDE];
    _Alignas(64) float scores[KEYS * SIDE], sums[MOST_HEAD * SIDE];
    Running r;
    memset(sums, 0, (size_t)(hs * SIDE) * 4);
    memset(r.total, 0, sizeof r.total);
    for (int lane = 0; lane < SIDE; lane++) {
        int64_t row = from + lane < rows ? from + lane : rows - 1;
        int64_t at = row / group * l->heads + head * group + row % group;
        r.last[lane] = (int32_t)(past + row / group);
        r.top[lane] = -INFINITY;
        for (int64_t j = 0; j < words; j++) {
            if (pairs || p->kv->kind == F32) {
                memcpy(queries + j * SIDE + lane, (const int32_t *)p->query + at * words + j, 4);
            } else {
                float x = bf16_to_f32(((const uint16_t *)p->query)[at * hs + j]);
                memcpy(queries + j * SIDE + lane, &x, 4);
            }
        }
    }
    const int32_t *keys = p->keys + head * p->key_head, *values = p->values + head * p->value_head;
    for (int64_t k = 0; k < seen; k += KEYS) {
        int64_t count = seen - k < KEYS ? seen - k : KEYS;
        tiles(keys + k * words, words, 1, count, queries, words, 0, pairs, scores);
        weigh(scores, k, count, 1 / sqrtf((float)hs), pairs, &r, sums, hs);
        int64_t along = pairs ? (count + 1) / 2 : count;
        tiles(values + (pairs ? k / 2 : k) * hs, 1, hs, hs, (const int32_t *)scores, along, 1, pairs, sums);
    }
    for (int lane = 0; lane < SIDE && from + lane < rows; lane++) {
        int64_t row = from + lane, at = (row / group * l->heads + head * group + row % group) * hs;
        float total = r.total[lane];
        for (int64_t c = 0; c < hs; c++) {
            float y = sums[c * SIDE + lane] / total;
            if (p->kv->kind == F32) ((float *)p->mixed)[at + c] = y;
            else ((uint16_t *)p->mixed)[at + c] = to_bf16(y);
        }
    }
}

static void attend_sides(void *context, int64_t from, int64_t to) {
    const Prompt *p = context;
    int64_t heads = p->l->kv_heads, rows = p->tokens * (p->l->heads / heads), last = (rows - 1) / SIDE;
    for (int64_t i = from; i < to; i++) { /* the longest come first, so that all threads end together */
        int64_t head = i % heads, side = (last - i / heads) * SIDE;
        if (HAS_PAIRS && p->pairs) attend_side(p, head, side, 1);
        else attend_side(p, head, side, 0);
    }
}

/* Items are the heads of the keys, then those of the values. */
static void pack_heads(void *context, int64_t from, int64_t to) {
    const Prompt *p = context;
    int64_t hs = p->l->head_dim, length = p->kv->length, heads = p->l->kv_heads;
    for (int64_t i = from; i < to; i++) {
        const uint16_t *source = (const uint16_t *)p->kv->data + i * p->kv->capacity * hs;
        if (!p->pairs) {
            float *target = (float *)p->packed + i * length * hs;
            for (int64_t j = 0; j < length * hs; j++) target[j] = bf16_to_f32(source[j]);
            continue;
        }
        int32_t *target = p->packed + (i - heads) * ((length + 1) / 2) * hs;
        for (int64_t t = 0; i >= heads && t < length; t += 2, source += 2 * hs, target += hs)
            for (int64_t c = 0; c < hs; c++)
                target[c] = (int32_t)(source[c] | (t + 1 < length ? (uint32_t)source[hs + c] << 16 : 0));
    }
}

int ld_prompt(const Layer *l, const Store *kv, int64_t tokens, const void *query, void *mixed) {
    int64_t hs = l->head_dim, heads = l->kv_heads, length = kv->length;
    int pairs = HAS_PAIRS && kv->kind == BF16;
    Prompt p = {.l = l, .kv = kv, .tokens = tokens, .pairs = pairs, .query = query, .mixed = mixed};
    pool_lock();
    Workspace *space = workspace_for_prompt(kv->kind == F32 ? 0 : heads * hs * (length + 1) * (pairs ? 1 : 2));
    if (space) {
        p.packed = (int32_t *)space->packed.at;
        p.keys = kv->data;
        p.key_head = p.value_head = kv->capacity * hs;
        p.values = p.keys + heads * p.key_head;
        if (pairs) {
            p.key_head = kv->capacity * hs / 2;
            p.values = p.packed;
            p.value_head = (length + 1) / 2 * hs;
        } else if (kv->kind == BF16) {
            p.keys = p.packed;
            p.key_head = p.value_head = length * hs;
            p.values = p.packed + heads * length * hs;
        }
        if (kv->kind == BF16) parallel(pack_heads, &p, 2 * heads, 1);
        int64_t sides = (tokens * (l->heads / heads) + SIDE - 1) / SIDE;
        parallel(attend_sides, &p, sides * heads, 1);
    }
    pool_unlock();
    return space ? LD_OK : LD_NO_MEMORY;
}
