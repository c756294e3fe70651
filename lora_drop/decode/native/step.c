/* A decode step on a CPU in a single call: a full step of some tokens, or a LoRA step of one.
 *
 * Weights are read once and in place: rows of bfloat16 or float32 in torch's memory, or panels of 16 rows of GGUF
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

const char *ld_path(void) {
#if defined(__AVX512F__)
    return "avx512"
#ifdef __AVX512VNNI__
           "-vnni"
#endif
#ifdef __AVX512BF16__
           "-bf16"
#endif
        ;
#elif defined(__aarch64__) && defined(BYTE_DOTS)
    return "neon-dot";
#elif defined(__aarch64__)
    return "neon";
#elif defined(BYTE_DOTS)
    return "avx2";
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
            run_dropped(l, p, s, h, space);
        } else {
            run_full(l, h, tokens, kv + i, space);
            if (p->drops) remember(p, s, h, s->attention_only ? space->attended.at : y, all);
        }
        if (p->drops && s->watched) memcpy(s->watched + dropped * all, y, (size_t)all * 4);
        dropped += p->drops;
        memcpy(h, y, (size_t)all * 4);
    }
}

/* Room for an answer, which may be NULL. */
static Workspace *workspace_for_answer(const Ends *ends, const Answer *answer) {
    if (answer && answer->screen) return workspace_for_screen(&ends->head, answer->screen);
    return workspace_for_matrix(&ends->head, answer ? answer->rows : 0);
}

static void run_head(const Ends *ends, const Answer *a, const float *h, Workspace *space) {
    const Matrix *w = &ends->head;
    float *last = a->logits + (a->rows - 1) * w->n;
    if (a->screen) {
        rms_norm(h, ends->norm, space->normed.at, 1, w->k, ends->eps);
        screened(w, a->screen, space->normed.at, a->logits, space);
    } else {
        Product p = prepare(w, h, (Norm){ends->norm, ends->eps}, NULL, a->rows, space, a->logits);
        multiply(&p, NULL);
    }
    for (int64_t r = 0; r < a->rows; r++) a->best[r] = ld_best(a->logits + r * w->n, w->n);
    if (a->entropy) *a->entropy = ld_entropy(last, w->n);
}

int ld_step(const Ends *ends, const Layer *layers, const Plan *plan, int64_t count, const Step *s,
            const float *cosine, const float *sine, Store *kv, float *h, const Answer *answer) {
    pool_lock();
    Workspace *space = workspace_for_step(layers, plan, kv, count, s->rows);
    if (space) space = workspace_for_answer(ends, answer);
    if (space) {
        int64_t d = ends->embed.k, before = s->rows - 1, n = s->narrow;
        float *last = h + before * d;
        if (s->token) to_f32(&ends->embed, *s->token, last);
        if (n) {
            int64_t turned = before * layers->head_dim;
            run_layers(layers, plan, n, s, &(Tokens){1, cosine + turned, sine + turned}, kv, last, space);
        }
        if (s->entered) memcpy(s->entered, last, (size_t)d * 4);
        for (int64_t i = n; i < count; i++)
            if (!plan[i].drops) kv[i].length -= s->forgets;
        Tokens all = {s->rows, cosine, sine};
        if (count > n) run_layers(layers + n, plan + n, count - n, s, &all, kv + n, h, space);
        if (answer) run_head(ends, answer, h + (s->rows - answer->rows) * d, space);
    }
    pool_unlock();
    return space ? LD_OK : LD_NO_MEMORY;
}

int ld_head(const Ends *ends, const float *h, const Answer *answer) {
    pool_lock();
    Workspace *space = workspace_for_answer(ends, answer);
    if (space) run_head(ends, answer, h, space);
    pool_unlock();
    return space ? LD_OK : LD_NO_MEMORY;
}

int64_t ld_best(const float *logits, int64_t n) {
    enum { PART = 1024 }; /* the largest is looked for in the part that has it */
    float top = -INFINITY;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i += PART) {
        float highest = largest(logits + i, n - i < PART ? n - i : PART);
        if (highest > top) {
            top = highest;
            at = i;
        }
    }
    while (at < n - 1 && logits[at] != top) at++;
    return at;
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
