/* What Python and C share: the structures (in Python: structs.py), the numbers in them, and the exported functions.
 *
 * Whoever changes any of it raises LD_ABI here and ABI in structs.py: the loader takes no library with another number.
 */
#ifndef LD_ABI_H
#define LD_ABI_H

#include <stdint.h>

#define LD_ABI 8
#define LD_API __attribute__((visibility("default"))) /* all else stays inside: the build hides it */

enum { F32, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K }; /* kinds of numbers */
enum { STATE, ANCHOR, RESIDUAL, SKIP };      /* reuse rules */
enum { LD_OK, LD_NO_MEMORY, LD_NO_THREADS }; /* what a function that returns an int found */
enum { QKV, OUT, GATE_UP, DOWN, MATRICES };  /* a layer's */

/* Borrows its memory. */
typedef struct Matrix {
    const void *data;          /* (N, K) rows, or N / 16 panels of blocks (panels.h) */
    const float *bias;         /* (N,) or NULL */
    int64_t n, k, kind;
    const struct Matrix *next; /* of what is of several kinds the rows after those in `data`, or NULL: N are all */
} Matrix;

typedef struct {
    const float *attention_norm, *mlp_norm; /* (D,) */
    const float *qk_norm;                   /* (nh + nkv, hs) or NULL */
    Matrix qkv, out, gate_up, down;
    int64_t hidden, heads, kv_heads, head_dim, inner; /* D, nh, nkv, hs, I */
    float eps;
} Layer;

/* What is added to a matrix: y += B (A x). */
typedef struct {
    Matrix a, b; /* A (r, K) and B (N, r), which is in blocks as A is, or else (N / 16, r, 16); r = 0: nothing */
} Pair;

/* A layer's K/V, and the tokens in it. */
typedef struct {
    void *data; /* (2, nkv, capacity, hs) */
    int64_t capacity, length, kind;
} Store;

/* What the schedule does with a layer. */
typedef struct {
    int64_t drops;           /* the schedule skips it at LoRA steps */
    const float *gate;       /* (D,): `residual` with a correction; else NULL, a gate of 1 */
    Pair linear;             /* the correction: its linear part, */
    Matrix mlp_in, mlp_out;  /* and its SwiGLU bottleneck, gate and up (2b, D) and down (D, b); b = 0 without */
    Pair kept[MATRICES];     /* of a layer that runs: changes of its matrices at LoRA steps */
    float *hidden;           /* (rows, D): what the rule remembers of each row of a full step */
} Plan;

typedef struct {
    int64_t rows;                                 /* tokens, one after the other; a LoRA step has one */
    int64_t lora, rule, attention_only, write_kv; /* of this step, and of the schedule */
    int64_t narrow;                               /* that many layers, the first, run for the last token alone */
    int64_t held;                                 /* the row of `hidden` that a LoRA step takes */
    float scale;                                  /* alpha / r */
    float *entered;                               /* (D,) for what comes after those layers, of one token, or NULL */
    float *watched;                               /* (skipped layers, rows, D) for their outputs, or NULL */
    float *ratios;                                /* (skipped layers,) for ||d|| / ||cached||, or NULL */
} Step;

/* A preview of the head: logits of a normed state x are about codes (project x). */
typedef struct {
    Matrix project;       /* (R, D), R rounded up to blocks */
    Matrix codes;         /* (V, R) as Q4_0, V rounded up to panels */
    const uint8_t *rows;  /* of a head of blocks, all of a kind, the rows as `ld_pack` takes them; else NULL */
    int64_t best;         /* tokens whose logits are exact */
} Screen;

LD_API int64_t ld_abi(void);

/* The instructions that the kernels were compiled for: `avx512`, with `-vnni` and `-bf16` where they use these, `avx2`,
 * `neon` or `plain`. NULL on a processor that does not have them. */
LD_API const char *ld_path(void);

/* Use this many threads from now on (64 at most), the caller's among them; a pool only grows. */
LD_API int ld_threads(int64_t threads);

/* Rows (n, k) of a GGUF's blocks into panels; n is a multiple of 16. */
LD_API void ld_pack(const uint8_t *source, uint8_t *target, int64_t n, int64_t k, int64_t kind);

/* A decode step through these layers, all or a part of them in a row: h (rows, D) is what the first takes, and at the
 * end what comes after the last. `kv` has room for as many more tokens; cosine and sine (rows, hs) are of their
 * positions. A row's result is, to the bit, that of a step of its own. Where memory is short, nothing has changed. */
LD_API int ld_step(const Layer *layers, const Plan *plan, int64_t count, const Step *s, const float *cosine,
                   const float *sine, Store *kv, float *h);

/* Attention of the last `tokens` tokens of a store, whose K/V are in it: query (tokens, nh, hs), rotated, to mixed of the
 * same shape; both are numbers of the store's kind. Each token sees what the store holds up to it. hs is even, and at
 * most 256. */
LD_API int ld_prompt(const Layer *layer, const Store *kv, int64_t tokens, const void *query, void *mixed);

/* Logits (rows, V) of h (rows, D): the last norm and the head. */
LD_API int ld_head(const Matrix *w, const float *norm, float eps, int64_t rows, const float *h, float *y);

/* Logits (V,) of one row h (D,): the screen's, but exact, to the bit, for the best of them. */
LD_API int ld_head_screened(const Matrix *w, const Screen *s, const float *norm, float eps, const float *h, float *y);

/* Entropy of the softmax of logits (n,), in nats. */
LD_API float ld_entropy(const float *logits, int64_t n);

/* The place of the largest of each row of logits (rows, n), of equal ones the first; of a NaN any. */
LD_API void ld_best(const float *logits, int64_t rows, int64_t n, int64_t *best);

#endif
