/* The interface between Python and C: structures (structs.py in Python), enumerations and exported functions.
 *
 * After any change raise LD_ABI here and ABI in structs.py: the loader refuses a library with another number.
 */
#ifndef LD_ABI_H
#define LD_ABI_H

#include <stdint.h>

#define LD_ABI 11
#ifdef _WIN32
#define LD_API __declspec(dllexport)
#else
#define LD_API __attribute__((visibility("default"))) /* the build hides all other symbols */
#endif

enum { F32, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K }; /* kinds of numbers */
enum { STATE, ANCHOR, RESIDUAL, SKIP };      /* reuse rules */
enum { LD_OK, LD_NO_MEMORY, LD_NO_THREADS }; /* results of the functions that return an int */

/* A weight matrix in memory that others own. */
typedef struct Matrix {
    const void *data;          /* (N, K) rows, or N / 16 panels of blocks (panels.h) */
    const float *bias;         /* (N,) or NULL */
    int64_t n, k, kind;
    const struct Matrix *next; /* rows of another kind after those in `data`, or NULL; N counts all rows */
} Matrix;

typedef struct {
    const float *attention_norm, *mlp_norm; /* (D,) */
    const float *qk_norm;                   /* (nh + nkv, hs) or NULL */
    Matrix qkv, out, gate_up, down;
    int64_t hidden, heads, kv_heads, head_dim, inner; /* D, nh, nkv, hs, I */
    float eps;
} Layer;

/* K/V of a layer, and the number of tokens in it. */
typedef struct {
    void *data; /* (2, nkv, capacity, hs) */
    int64_t capacity, length, kind;
} Store;

/* How LoRA steps run a layer. */
typedef struct {
    int64_t drops;     /* the schedule skips it at LoRA steps */
    const float *gate; /* (D,) for `residual` with a correction; NULL is 1 */
    Matrix a, b;       /* the correction's A (r, D), B (D, r) in blocks if A is, else (D / 16, r, 16); r = 0: none */
    float *hidden;     /* (rows, D): the anchor after each row of a full step */
} Plan;

typedef struct {
    int64_t rows;                                 /* consecutive tokens; a LoRA step has one */
    int64_t lora, rule, attention_only, write_kv; /* kind of step, and settings of the schedule */
    int64_t narrow;                               /* the first `narrow` layers run the last token alone */
    int64_t held;                                 /* the row of `hidden` that is the anchor of a LoRA step */
    int64_t forgets;                              /* cached tokens that later layers lose first, unless dropped */
    float scale;                                  /* alpha / r */
    const int64_t *token;                         /* of the last row, whose embedding becomes its input; or NULL */
    float *entered;                               /* (D,): receives the last token's state after them; or NULL */
    float *watched;                               /* (skipped layers, rows, D): receives their outputs; or NULL */
} Step;

/* A preview of the head: the logits of a normed state x are about codes (project x). */
typedef struct {
    Matrix project;       /* (R, D), R rounded up to blocks */
    Matrix codes;         /* (V, R) as Q4_0, V rounded up to panels */
    const uint8_t *rows;  /* rows of a head in blocks of one kind, as `ld_pack` takes them; else NULL */
    int64_t best;         /* tokens whose logits are exact */
} Screen;

/* The model's two ends. */
typedef struct {
    Matrix embed;      /* (V, D), without blocks */
    Matrix head;       /* (V, D) */
    const float *norm; /* (D,), before the head */
    float eps;
} Ends;

/* The head of some rows, and what to read off their logits. */
typedef struct {
    const Screen *screen; /* for one row: its logits are exact, to the bit, for the screen's best tokens; or NULL */
    int64_t rows;
    float *logits;        /* (rows, V) */
    int64_t *best;        /* (rows,): receives each row's `ld_best` */
    float *entropy;       /* receives `ld_entropy` of the last row; or NULL */
} Answer;

LD_API int64_t ld_abi(void);

/* Instruction set that the kernels were compiled for: `avx512`, with `-vnni` and `-bf16` if they use these, `avx2`,
 * `neon`, with `-dot` if they use byte products, or `plain`. */
LD_API const char *ld_path(void);

/* The names of `ld_path` that this processor can run, the best last, with spaces between them. */
LD_API const char *ld_paths(void);

/* Use `count` threads from now on (at most 64), with the caller's; a pool never shrinks. */
LD_API int ld_threads(int64_t threads);

/* Regroup rows (n, k) of a GGUF file's blocks into panels; n is a multiple of 16. */
LD_API void ld_pack(const uint8_t *source, uint8_t *target, int64_t n, int64_t k, int64_t kind);

/* Run a decode step through consecutive layers: h (rows, D) is the input of the first and becomes the output of the
 * last. `kv` has room for these rows; cosine and sine (rows, hs) are of their positions. Each row's result equals, to
 * the bit, that of a separate step. Then `answer`, unless NULL, for the last of the rows. If memory is short, nothing
 * is changed. */
LD_API int ld_step(const Ends *ends, const Layer *layers, const Plan *plan, int64_t count, const Step *s,
                   const float *cosine, const float *sine, Store *kv, float *h, const Answer *answer);

/* Attention of the last `tokens` tokens of a store that holds their K/V: from rotated queries (tokens, nh, hs) to
 * `mixed` of the same shape, both in the store's number type. Each token sees the store up to itself. hs is even and
 * at most 256. */
LD_API int ld_prompt(const Layer *layer, const Store *kv, int64_t tokens, const void *query, void *mixed);

/* The answer for h (rows, D): the last norm and the head. */
LD_API int ld_head(const Ends *ends, const float *h, const Answer *answer);

/* Entropy of the softmax of logits (n,), in nats. */
LD_API float ld_entropy(const float *logits, int64_t n);

/* Index of the largest of logits (n,), the first of equal ones; any if there is a NaN. */
LD_API int64_t ld_best(const float *logits, int64_t n);

#endif
