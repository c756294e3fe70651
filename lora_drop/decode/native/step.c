/* A decode step on a CPU in a single call: a full step of some tokens, or a LoRA step of one.
 *
 * Weights are read once and in place: rows of bfloat16 or float32 in torch's own memory, or panels of 16 rows of GGUF
 * blocks (panels.h). Activations are float32, or as precise (panels.h), so only the weights are quantised. K/V are
 * bfloat16 or float32.
 */
#include <math.h>

#include "abi.h"
#include "layer.h"
#include "matmul.h"
#include "pool.h"
#include "screen.h"
#include "vec.h"
#include "workspace.h"

int64_t ld_abi(void) { return LD_ABI; }

#ifdef __AVX512VNNI__
#define VNNI "-vnni"
#else
#define VNNI ""
#endif
#ifdef __AVX512BF16__
#define PAIRS "-bf16"
#else
#define PAIRS ""
#endif

const char *ld_path(void) {
#if defined(__AVX512F__)
    int fits = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return fits ? "avx512" VNNI PAIRS : NULL;
#elif defined(BYTE_DOTS)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "avx2" : NULL;
#elif defined(__aarch64__)
    return "neon";
#else
    return "plain";
#endif
}

/* Keep the anchor after each row of a full step, from the layer's input h and f(h) (rules.py in Python). */
static void remember(const Plan *p, const Step *s, const float *h, const float *reached, int64_t count) {
    if (s->rule == SKIP) return;
    for (int64_t j = 0; j < count; j++) p->hidden[j] = reached[j] - (s->rule == RESIDUAL ? h[j] : 0);
}

static void run_layers(const Layer *layers, const Plan *plan, int64_t count, const Step *s, const Tokens *tokens,
                       Store *kv, float *h, Workspace *space) {
    int64_t all = tokens->count * layers->hidden, dropped = 0;
    const float *y = space->output.at;
    for (int64_t i = 0; i < count; i++) {
        const Layer *l = layers + i;
        const Plan *p = plan + i;
        if (p->drops && s->lora) {
            if (s->write_kv) write_kv(l, h, tokens, kv + i, space);
            float ratio = run_dropped(l, p, s, h, space);
            if (s->ratios) s->ratios[dropped] = ratio;
        } else {
            run_full(l, s->lora ? p->kept : NULL, h, tokens, kv + i, space);
            if (p->drops) remember(p, s, h, s->attention_only ? space->attended.at : y, all);
        }
        if (p->drops && s->watched) memcpy(s->watched + dropped * all, y, (size_t)all * 4);
        dropped += p->drops;
        memcpy(h, y, (size_t)all * 4);
    }
}

int ld_step(const Layer *layers, const Plan *plan, int64_t count, const Step *s, const float *cosine,
            const float *sine, Store *kv, float *h) {
    pool_lock();
    Workspace *space = workspace_for_step(layers, plan, kv, count, s->rows);
    if (space) {
        int64_t before = s->rows - 1, turned = before * layers->head_dim, n = s->narrow;
        float *last = h + before * layers->hidden;
        run_layers(layers, plan, n, s, &(Tokens){1, cosine + turned, sine + turned}, kv, last, space);
        if (s->entered) memcpy(s->entered, last, (size_t)layers->hidden * 4);
        run_layers(layers + n, plan + n, count - n, s, &(Tokens){s->rows, cosine, sine}, kv + n, h, space);
    }
    pool_unlock();
    return space ? LD_OK : LD_NO_MEMORY;
}

void ld_best(const float *logits, int64_t rows, int64_t n, int64_t *best) {
    for (; rows > 0; rows--, logits += n, best++) {
        float top = largest(logits, n);
        int64_t i = 0;
        while (i < n - 1 && logits[i] != top) i++;
        *best = i;
    }
}

int ld_head(const Matrix *w, const float *norm, float eps, int64_t rows, const float *h, float *y) {
    pool_lock();
    Workspace *space = workspace_for_matrix(w, rows);
    if (space) {
        rms_norm(h, norm, space->normed.at, rows, w->k, eps);
        Product p = prepare(w, NULL, space->normed.at, NULL, rows, space, y);
        multiply(&p, NULL);
    }
    pool_unlock();
    return space ? LD_OK : LD_NO_MEMORY;
}

int ld_head_screened(const Matrix *w, const Screen *s, const float *norm, float eps, const float *h, float *y) {
    pool_lock();
    Workspace *space = workspace_for_screen(w, s);
    if (space) {
        rms_norm(h, norm, space->normed.at, 1, w->k, eps);
        screened(w, s, space->normed.at, y, space);
    }
    pool_unlock();
    return space ? LD_OK : LD_NO_MEMORY;
}

/* log S - sum(e^x x) / S, with x relative to the largest logit. */
float ld_entropy(const float *logits, int64_t n) {
    float top = largest(logits, n), total = 0, weighted = 0;
    vf many = {0}, most = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf x = loadf(logits + i) - top, e = exponential(x);
        many += e;
        most = madd(e, x, most);
    }
    for (; i < n; i++) {
        float x = logits[i] - top, e = expf(x);
        total += e;
        weighted += e * x;
    }
    total += sum(many);
    return logf(total) - (weighted + sum(most)) / total;
}
