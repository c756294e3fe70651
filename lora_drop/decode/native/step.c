/* A decode step on a CPU: one token through the layers, full or with dropped ones, in a single call.
 *
 * Weights are read once and in place: rows of bfloat16 or float32 as torch has them, or panels of 16 rows of a GGUF's
 * Q4_1 or Q8_0 blocks (see `ld_pack`). Activations are float32 everywhere, so the blocks' own values count and nothing
 * is rounded on the way; K/V are bfloat16 or float32. The compiler makes vectors of whatever width the processor has.
 *
 * Threads: a pool takes small chunks of rows from a counter, so that a thread which the system has put aside holds up
 * one chunk only. It spins briefly for the next phase and then sleeps. One call at a time uses it (a lock).
 */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { F32, BF16, Q4_1, Q8_0 };
enum { LANES = 16, BLOCK = 32, Q4_BYTES = 20, Q8_BYTES = 34 };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

static inline vf loadf(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
static inline vi loadi(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }
static inline vh loadh(const void *p) { vh v; memcpy(&v, p, sizeof v); return v; }

static inline vf from_bf16(const uint16_t *p) { return (vf)(__builtin_convertvector(loadh(p), vi) << 16); }

/* float16 by shifting its bits into place and scaling by 2^112, which is exact for subnormals too. */
static inline vf from_f16(const void *p) {
    vi h = __builtin_convertvector(loadh(p), vi);
    vf magnitude = (vf)((h & 0x7fff) << 13) * 0x1p112f;
    return (vf)((vi)magnitude | ((h & 0x8000) << 16));
}

static inline uint16_t to_bf16(float x) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16) | 64;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float sum(vf v) { /* by halves: a chain of 16 additions would wait for each */
    float t[LANES];
    memcpy(t, &v, sizeof t);
    for (int l = 0; l < 8; l++) t[l] += t[l + 8];
    for (int l = 0; l < 4; l++) t[l] += t[l + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

static inline vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* e^x to about 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Below -87 it is as good as 0,
 * above 88 as good as infinite; a NaN stays one. */
static inline vf exponential(vf x) {
    const vf zero = {0};
    vf held = choose(x < -87.0f, zero - 87.0f, x);
    held = choose(held > 88.0f, zero + 88.0f, held);
    vf n = held * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to a whole number */
    vi whole = (vi)n - 0x4b400000;
    n -= 12582912.0f;
    vf f = held - n * 0.693359375f + n * 2.12194440e-4f;
    vf y = 1.9875691500e-4f * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    return choose(x == x, y * (vf)((whole + 127) << 23), x);
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

typedef struct {
    const void *data;  /* (N, K) rows, or N / 16 panels of blocks */
    const float *bias; /* (N,) or NULL */
    int64_t n, k, kind;
} Matrix;

static float bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

#define AS_IS(x) (x)
enum { WIDTH = 4 * LANES, AHEAD = 8192 };

/* The same over rows of either number type. dot: w . x, fetching what lies AHEAD bytes further on, which is what this
 * thread reads next. mix: sums of weighted rows, `width` of their columns; `stride` is the length of a row. */
#define OVER(NAME, TYPE, VECTOR, ONE) \
    static float dot_##NAME(const TYPE *w, const float *x, int64_t k) { \
        vf a = {0}, b = {0}, c = {0}, d = {0}; \
        int64_t i = 0; \
        for (; i + WIDTH <= k; i += WIDTH) { \
            __builtin_prefetch((const char *)(w + i) + AHEAD); \
            __builtin_prefetch((const char *)(w + i) + AHEAD + 64); \
            a += VECTOR(w + i) * loadf(x + i); \
            b += VECTOR(w + i + LANES) * loadf(x + i + LANES); \
            c += VECTOR(w + i + 2 * LANES) * loadf(x + i + 2 * LANES); \
            d += VECTOR(w + i + 3 * LANES) * loadf(x + i + 3 * LANES); \
        } \
        for (; i + LANES <= k; i += LANES) a += VECTOR(w + i) * loadf(x + i); \
        float rest = 0; \
        for (; i < k; i++) rest += ONE(w[i]) * x[i]; \
        return sum((a + b) + (c + d)) + rest; \
    } \
    static void mix_##NAME( \
        const TYPE *v, const float *weights, int64_t count, int64_t stride, int64_t width, float *y) { \
        if (width == WIDTH) { \
            vf a = {0}, b = {0}, c = {0}, d = {0}; \
            for (int64_t t = 0; t < count; t++, v += stride) { \
                a += VECTOR(v) * weights[t]; \
                b += VECTOR(v + LANES) * weights[t]; \
                c += VECTOR(v + 2 * LANES) * weights[t]; \
                d += VECTOR(v + 3 * LANES) * weights[t]; \
            } \
            memcpy(y, (vf[]){a, b, c, d}, 4 * sizeof a); \
            return; \
        } \
        for (int64_t j = 0; j < width; j++) { \
            float total = 0; \
            for (int64_t t = 0; t < count; t++) total += ONE(v[t * stride + j]) * weights[t]; \
            y[j] = total; \
        } \
    }

OVER(f32, float, loadf, AS_IS)
OVER(bf16, uint16_t, from_bf16, bf16_to_f32)

/* A panel's block holds, for 16 rows: d and m (16 float16 each), then 4 x 16 words of 8 codes. Word j of a row has the
 * codes of the block's weights 8j..8j+7, from its low bits up. */
static void panel_q4_1(const uint8_t *p, const float *x, const float *sums, int64_t blocks, float *y) {
    vf total = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q4_BYTES, x += BLOCK) {
        vf one = {0}, two = {0};
        for (int j = 0; j < 4; j++) {
            vi codes = loadi(p + 4 * LANES + 4 * LANES * j);
            for (int s = 0; s < 8; s += 2) {
                one += __builtin_convertvector((codes >> (4 * s)) & 15, vf) * x[8 * j + s];
                two += __builtin_convertvector((codes >> (4 * s + 4)) & 15, vf) * x[8 * j + s + 1];
            }
        }
        total += from_f16(p) * (one + two) + from_f16(p + 2 * LANES) * sums[b];
    }
    memcpy(y, &total, sizeof total);
}

/* A panel's block holds 16 float16 d, then 8 x 16 words of 4 signed bytes: word j has the weights 4j..4j+3 of a row. */
static void panel_q8_0(const uint8_t *p, const float *x, int64_t blocks, float *y) {
    vf total = {0};
    for (int64_t b = 0; b < blocks; b++, p += LANES * Q8_BYTES, x += BLOCK) {
        vf one = {0}, two = {0};
        for (int j = 0; j < 8; j++) {
            vi codes = loadi(p + 2 * LANES + 4 * LANES * j);
            one += __builtin_convertvector((codes << 24) >> 24, vf) * x[4 * j];
            two += __builtin_convertvector((codes << 16) >> 24, vf) * x[4 * j + 1];
            one += __builtin_convertvector((codes << 8) >> 24, vf) * x[4 * j + 2];
            two += __builtin_convertvector(codes >> 24, vf) * x[4 * j + 3];
        }
        total += from_f16(p) * (one + two);
    }
    memcpy(y, &total, sizeof total);
}

/* Rows [from, to) of y = W x + bias; for blocks both are multiples of 16. */
static void rows(const Matrix *w, const float *x, const float *sums, int64_t from, int64_t to, float *y) {
    int64_t blocks = w->k / BLOCK;
    for (int64_t r = from; r < to;) {
        if (w->kind == Q4_1) {
            panel_q4_1((const uint8_t *)w->data + r * blocks * Q4_BYTES, x, sums, blocks, y + r);
            r += LANES;
        } else if (w->kind == Q8_0) {
            panel_q8_0((const uint8_t *)w->data + r * blocks * Q8_BYTES, x, blocks, y + r);
            r += LANES;
        } else {
            const float *f32 = (const float *)w->data + r * w->k;
            const uint16_t *bf16 = (const uint16_t *)w->data + r * w->k;
            y[r] = w->kind == F32 ? dot_f32(f32, x, w->k) : dot_bf16(bf16, x, w->k);
            r++;
        }
    }
    if (w->bias)
        for (int64_t r = from; r < to; r++) y[r] += w->bias[r];
}

/* Sums of x over blocks, which Q4_1's minimum multiplies. */
static void block_sums(const Matrix *w, const float *x, float *sums) {
    if (w->kind != Q4_1) return;
    for (int64_t b = 0; b < w->k / BLOCK; b++) {
        sums[b] = sum(loadf(x + b * BLOCK) + loadf(x + b * BLOCK + LANES));
    }
}

/* Rows (n, k / 32 blocks) of a GGUF into panels; n is a multiple of 16. */
void ld_pack(const uint8_t *source, uint8_t *target, int64_t n, int64_t k, int64_t kind) {
    int64_t blocks = k / BLOCK, size = kind == Q4_1 ? Q4_BYTES : Q8_BYTES;
    for (int64_t panel = 0; panel < n / LANES; panel++)
        for (int64_t b = 0; b < blocks; b++) {
            uint8_t *out = target + (panel * blocks + b) * LANES * size;
            for (int l = 0; l < LANES; l++) {
                const uint8_t *in = source + ((panel * LANES + l) * blocks + b) * size;
                memcpy(out + 2 * l, in, 2);
                if (kind == Q8_0) {
                    for (int j = 0; j < 8; j++) { /* low byte first, whatever the machine's order */
                        uint32_t word = 0;
                        for (int s = 0; s < 4; s++) word |= (uint32_t)in[2 + 4 * j + s] << (8 * s);
                        memcpy(out + 2 * LANES + 4 * LANES * j + 4 * l, &word, 4);
                    }
                    continue;
                }
                memcpy(out + 2 * LANES + 2 * l, in + 2, 2);
                for (int j = 0; j < 4; j++) {
                    uint32_t word = 0;
                    for (int s = 0; s < 8; s++) {
                        int i = 8 * j + s; /* byte i % 16 has weight i in its low (i < 16) or high bits */
                        word |= (uint32_t)(i < 16 ? in[4 + i] & 15 : in[4 + i - 16] >> 4) << (4 * s);
                    }
                    memcpy(out + 4 * LANES + 4 * LANES * j + 4 * l, &word, 4);
                }
            }
        }
}

/* ---- the pool ---------------------------------------------------------------------------------------------------- */

typedef void (*Work)(void *context, int64_t from, int64_t to);

enum { SPINS = 4000, PATIENCE = 200 };

static struct {
    pthread_mutex_t calls, sleep;
    pthread_cond_t wake;
    int threads; /* workers, the caller not counted */
    pid_t owner; /* a forked child has none of the parent's threads */
    Work work;
    void *context;
    int64_t count, chunk;
    _Atomic int64_t next, done;
    _Atomic uint64_t phase;
    _Atomic int sleepers, inside;
} pool = {.calls = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_chunks(void) {
    for (;;) {
        int64_t from = atomic_fetch_add(&pool.next, pool.chunk);
        if (from >= pool.count) return;
        int64_t to = from + pool.chunk < pool.count ? from + pool.chunk : pool.count;
        pool.work(pool.context, from, to);
        atomic_fetch_add(&pool.done, to - from);
    }
}

/* Phases are open at even numbers; at odd ones the caller lays out the next. */
static inline int is_new(uint64_t phase, uint64_t seen) { return phase != seen && phase % 2 == 0; }

static void *worker(void *unused) {
    (void)unused;
    uint64_t seen = 0;
    for (;;) {
        uint64_t phase;
        for (int i = 0; !is_new(phase = atomic_load(&pool.phase), seen) && i < SPINS; i++) relax();
        if (!is_new(phase, seen)) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleepers, 1);
            while (!is_new(phase = atomic_load(&pool.phase), seen)) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = phase;
        /* Announce first, then look again: the caller closes a phase first and then looks for who is inside, so one
         * of the two sees the other. */
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.phase) == seen) take_chunks();
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

/* Work over [0, count) in chunks, by the pool and the caller together; returns when all is done. */
static void parallel(Work work, void *context, int64_t count, int64_t chunk) {
    if (!pool.threads || count <= chunk) {
        work(context, 0, count);
        return;
    }
    atomic_fetch_add(&pool.phase, 1);
    for (int i = 0; atomic_load(&pool.inside); i++) i < PATIENCE ? relax() : (void)sched_yield();
    pool.work = work;
    pool.context = context;
    pool.count = count;
    pool.chunk = chunk;
    atomic_store(&pool.done, 0);
    atomic_store(&pool.next, 0);
    atomic_fetch_add(&pool.phase, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    take_chunks();
    for (int i = 0; atomic_load(&pool.done) < count; i++) i < PATIENCE ? relax() : (void)sched_yield();
}

/* Use this many threads from now on, the caller's among them; a pool only grows. */
void ld_threads(int64_t threads) {
    pthread_mutex_lock(&pool.calls);
    if (pool.owner != getpid()) {
        pool.owner = getpid();
        pool.threads = 0;
        atomic_store(&pool.inside, 0);
        atomic_store(&pool.sleepers, 0);
        pthread_mutex_init(&pool.sleep, NULL);
        pthread_cond_init(&pool.wake, NULL);
    }
    for (; pool.threads < threads - 1; pool.threads++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, NULL)) break;
        pthread_detach(thread);
    }
    pthread_mutex_unlock(&pool.calls);
}

/* ---- a layer ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const float *attention_norm, *mlp_norm; /* (D,) */
    const float *qk_norm;                   /* (nh + nkv, hs) or NULL */
    Matrix qkv, out, gate_up, down;
    int64_t hidden, heads, kv_heads, head_dim, inner; /* D, nh, nkv, hs, I */
    float eps;
} Layer;

typedef struct {
    void *data; /* (2, nkv, capacity, hs) */
    int64_t capacity, length, kind;
} Store;

typedef struct {
    const Matrix *w;
    const float *x, *sums;
    float *y;
    const float *residual; /* y += residual, or NULL */
} Product;

static void product_chunk(void *context, int64_t from, int64_t to) {
    const Product *p = context;
    rows(p->w, p->x, p->sums, from, to, p->y);
    if (p->residual)
        for (int64_t r = from; r < to; r++) p->y[r] += p->residual[r];
}

/* Rows a chunk: about 32 kB of weights, in whole panels. */
static int64_t chunk_of(const Matrix *w) {
    double bytes = w->kind == F32 ? 4 : w->kind == BF16 ? 2 : w->kind == Q4_1 ? 0.625 : 1.0625;
    int64_t count = (int64_t)(32768 / (bytes * (double)w->k)) / LANES * LANES;
    return count < LANES ? LANES : count;
}

static void multiply(const Matrix *w, const float *x, float *sums, float *y, const float *residual) {
    block_sums(w, x, sums);
    Product p = {w, x, sums, y, residual};
    parallel(product_chunk, &p, w->n, chunk_of(w));
}

static void rms_norm(const float *x, const float *weight, float *y, int64_t n, float eps) {
    float square = dot_f32(x, x, n), scale = 1 / sqrtf(square / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static float *scratch(int slot, int64_t floats) { /* grows; the lock of `calls` is held */
    static float *memory[11];
    static int64_t size[11];
    if (size[slot] < floats) {
        free(memory[slot]);
        memory[slot] = aligned_alloc(64, (size_t)((floats * 4 + 127) / 64 * 64));
        size[slot] = memory[slot] ? floats : 0;
    }
    return memory[slot];
}

/* Queries, keys and values of h into heads (nh + 2 nkv, hs), rotated; K and V also into the store. */
static void project(const Layer *l, const float *h, const float *cosine, const float *sine, Store *kv, float *heads) {
    int64_t hs = l->head_dim, turned = l->heads + l->kv_heads;
    float *x = scratch(0, l->hidden), *sums = scratch(1, (l->inner > l->hidden ? l->inner : l->hidden) / BLOCK + 1);
    rms_norm(h, l->attention_norm, x, l->hidden, l->eps);
    multiply(&l->qkv, x, sums, heads, NULL);
    for (int64_t i = 0; i < turned; i++) {
        float *head = heads + i * hs;
        if (l->qk_norm) rms_norm(head, l->qk_norm + i * hs, head, hs, l->eps);
        for (int64_t j = 0; j < hs / 2; j++) {
            float one = head[j], two = head[j + hs / 2];
            head[j] = one * cosine[j] - two * sine[j];
            head[j + hs / 2] = two * cosine[j + hs / 2] + one * sine[j + hs / 2];
        }
    }
    for (int64_t i = 0; i < 2 * l->kv_heads; i++) {
        const float *from = heads + (l->heads + i) * hs;
        int64_t at = (i * kv->capacity + kv->length) * hs;
        if (kv->kind == F32) {
            memcpy((float *)kv->data + at, from, (size_t)hs * 4);
        } else {
            for (int64_t j = 0; j < hs; j++) ((uint16_t *)kv->data)[at + j] = to_bf16(from[j]);
        }
    }
    kv->length++;
}

typedef struct {
    const Layer *l;
    const Store *kv;
    const float *heads;
    float *scores, *mixed; /* (nh, S), (nh, hs) */
} Attention;

static void softmax(float *scores, int64_t count, float top) {
    int64_t t = 0;
    vf many = {0};
    float total = 0;
    for (; t + LANES <= count; t += LANES) {
        vf e = exponential(loadf(scores + t) - top);
        memcpy(scores + t, &e, sizeof e);
        many += e;
    }
    for (; t < count; t++) total += scores[t] = expf(scores[t] - top);
    total += sum(many);
    for (t = 0; t < count; t++) scores[t] /= total;
}

/* Query heads [from, to) over all that the store holds. */
static void attend_chunk(void *context, int64_t from, int64_t to) {
    const Attention *a = context;
    const Layer *l = a->l;
    int64_t hs = l->head_dim, count = a->kv->length, group = l->heads / l->kv_heads;
    float scale = 1 / sqrtf((float)hs);
    for (int64_t head = from; head < to; head++) {
        const float *q = a->heads + head * hs;
        float *scores = a->scores + head * count, *mixed = a->mixed + head * hs, top = -INFINITY;
        int64_t keys = (head / group) * a->kv->capacity * hs;
        int64_t values = (l->kv_heads + head / group) * a->kv->capacity * hs;
        const float *k32 = (const float *)a->kv->data + keys, *v32 = (const float *)a->kv->data + values;
        const uint16_t *k16 = (const uint16_t *)a->kv->data + keys, *v16 = (const uint16_t *)a->kv->data + values;
        int is_f32 = a->kv->kind == F32;
        for (int64_t t = 0; t < count; t++) {
            scores[t] = scale * (is_f32 ? dot_f32(k32 + t * hs, q, hs) : dot_bf16(k16 + t * hs, q, hs));
            if (!(scores[t] <= top)) top = scores[t]; /* a NaN goes through */
        }
        softmax(scores, count, top);
        for (int64_t j = 0; j < hs; j += WIDTH) { /* a few columns at a time stay in registers */
            int64_t width = hs - j < WIDTH ? hs - j : WIDTH;
            if (is_f32) mix_f32(v32 + j, scores, count, hs, width, mixed + j);
            else mix_bf16(v16 + j, scores, count, hs, width, mixed + j);
        }
    }
}

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

static void attention(const Layer *l, const float *h, const float *cosine, const float *sine, Store *kv, float *u) {
    int64_t hs = l->head_dim;
    float *heads = scratch(2, (l->heads + 2 * l->kv_heads) * hs), *mixed = scratch(3, l->heads * hs);
    project(l, h, cosine, sine, kv, heads);
    Attention a = {l, kv, heads, scratch(4, l->heads * (kv->length + 1)), mixed};
    parallel(attend_chunk, &a, l->heads, 1);
    multiply(&l->out, mixed, scratch(1, 0), u, h);
}

static void mlp(const Layer *l, const float *u, float *y) {
    float *x = scratch(0, l->hidden), *sums = scratch(1, (l->inner > l->hidden ? l->inner : l->hidden) / BLOCK + 1);
    float *gate = scratch(5, 2 * l->inner);
    rms_norm(u, l->mlp_norm, x, l->hidden, l->eps);
    block_sums(&l->gate_up, x, sums);
    Gate g = {l, x, sums, gate, gate + l->inner};
    parallel(gate_chunk, &g, l->inner, chunk_of(&l->gate_up));
    multiply(&l->down, gate, sums, y, u);
}

/* K and V of a token alone: a dropped layer that still writes them. */
static void write_kv(const Layer *l, const float *h, const float *cosine, const float *sine, Store *kv) {
    int64_t hs = l->head_dim, queries = l->heads * hs, blocks = l->qkv.k / BLOCK;
    int64_t row = l->qkv.kind == F32 ? 4 * l->qkv.k : l->qkv.kind == BF16 ? 2 * l->qkv.k
                  : blocks * (l->qkv.kind == Q4_1 ? Q4_BYTES : Q8_BYTES);
    Layer only = *l; /* the rows of k and v alone: queries are neither read nor turned */
    only.qkv.data = (const uint8_t *)l->qkv.data + queries * row;
    only.qkv.n -= queries;
    if (l->qkv.bias) only.qkv.bias = l->qkv.bias + queries;
    if (l->qk_norm) only.qk_norm = l->qk_norm + queries;
    only.heads = 0;
    project(&only, h, cosine, sine, kv, scratch(2, (l->heads + 2 * l->kv_heads) * hs));
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

enum { STATE, ANCHOR, RESIDUAL, SKIP }; /* reuse rules */

typedef struct {
    int64_t drops;          /* the schedule drops this layer at LoRA steps */
    const float *gate;      /* (D,): `residual` with a correction; else NULL, a gate of 1 */
    Matrix a, bt;           /* A and B transposed, (r, D) each; r = 0 without a correction */
    float *hidden;          /* (D,): what the rule remembers of the last full step */
} Plan;

typedef struct {
    int64_t lora, rule, attention_only, write_kv; /* of this step, and of the schedule */
    float scale;                                  /* alpha / r */
    float *watched;                               /* (dropped layers, D) for their outputs, or NULL */
    float *ratios;                                /* (dropped layers,) for ||d|| / ||cached||, or NULL */
} Step;

/* d = scale * B (A h), (D,). Too little work for two threads: they would spend longer on meeting. */
static void correct(const Plan *p, const float *h, float scale, float *d) {
    int64_t n = p->a.k, rank = p->a.n;
    float *low = scratch(6, rank);
    rows(&p->a, h, NULL, 0, rank, low);
    for (int64_t r = 0; r < rank; r++) low[r] *= scale;
    for (int64_t i = 0; i < n; i += WIDTH) {
        int64_t width = n - i < WIDTH ? n - i : WIDTH;
        if (p->bt.kind == F32) mix_f32((const float *)p->bt.data + i, low, rank, n, width, d + i);
        else mix_bf16((const uint16_t *)p->bt.data + i, low, rank, n, width, d + i);
    }
}

/* A dropped layer at a LoRA step: y from h by the reuse rule; with `attention_only` the MLP still runs on it.
 * Returns ||d|| / ||cached||, or a NaN without a correction. */
static float reuse(const Layer *l, const Plan *p, const Step *s, const float *h, float *y) {
    const float *cached = s->rule == SKIP ? h : p->hidden;
    float *d = scratch(7, l->hidden), ratio = NAN;
    int64_t n = l->hidden;
    if (p->a.n) {
        correct(p, h, s->scale, d);
        if (s->ratios) ratio = sqrtf(dot_f32(d, d, n)) / sqrtf(dot_f32(cached, cached, n));
    } else {
        memset(d, 0, (size_t)n * 4);
    }
    float *u = s->attention_only ? scratch(8, n) : y;
    if (s->rule != RESIDUAL)
        for (int64_t i = 0; i < n; i++) u[i] = cached[i] + d[i];
    else if (p->gate)
        for (int64_t i = 0; i < n; i++) u[i] = h[i] + p->gate[i] * cached[i] + d[i];
    else
        for (int64_t i = 0; i < n; i++) u[i] = h[i] + cached[i] + d[i];
    if (s->rule == STATE) memcpy(p->hidden, u, (size_t)n * 4);
    if (s->attention_only) mlp(l, u, y);
    return ratio;
}

/* A decode step through all layers: h (D,) is the token's embedding, and at the end what the last norm takes. */
void ld_step(const Layer *layers, const Plan *plan, int64_t count, const Step *s, const float *cosine, const float *sine,
             Store *kv, float *h) {
    pthread_mutex_lock(&pool.calls);
    int64_t n = layers->hidden, dropped = 0;
    size_t bytes = (size_t)n * 4;
    float *u = scratch(9, n), *y = scratch(10, n);
    for (int64_t i = 0; i < count; i++) {
        const Layer *l = layers + i;
        const Plan *p = plan + i;
        if (p->drops && s->lora) {
            if (s->write_kv) write_kv(l, h, cosine, sine, kv + i);
            float ratio = reuse(l, p, s, h, y);
            if (s->ratios) s->ratios[dropped] = ratio;
        } else {
            attention(l, h, cosine, sine, kv + i, u);
            mlp(l, u, y);
            if (p->drops && s->rule != SKIP) { /* a refresh leaves the anchor behind */
                const float *reached = s->attention_only ? u : y;
                for (int64_t j = 0; j < n; j++) p->hidden[j] = reached[j] - (s->rule == RESIDUAL ? h[j] : 0);
            }
        }
        if (p->drops && s->watched) memcpy(s->watched + dropped * n, y, bytes);
        dropped += p->drops;
        memcpy(h, y, bytes);
    }
    pthread_mutex_unlock(&pool.calls);
}

/* Logits (V,) of h: the last norm and the head. */
void ld_head(const Matrix *w, const float *norm, float eps, const float *h, float *y) {
    pthread_mutex_lock(&pool.calls);
    float *x = scratch(0, w->k);
    rms_norm(h, norm, x, w->k, eps);
    multiply(w, x, scratch(1, w->k / BLOCK + 1), y, NULL);
    pthread_mutex_unlock(&pool.calls);
}

/* Entropy of the softmax of logits (n,), in nats: log S - sum(e^x x) / S with x from the largest down. */
float ld_entropy(const float *logits, int64_t n) {
    float top = -INFINITY, total = 0, weighted = 0;
    for (int64_t i = 0; i < n; i++)
        if (!(logits[i] <= top)) top = logits[i]; /* a NaN goes through */
    vf many = {0}, most = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf x = loadf(logits + i) - top, e = exponential(x);
        many += e;
        most += e * x;
    }
    for (; i < n; i++) {
        float x = logits[i] - top, e = expf(x);
        total += e;
        weighted += e * x;
    }
    total += sum(many);
    return logf(total) - (weighted + sum(most)) / total;
}
