/* Memory that calls work in. It grows and stays for the next call; the pool's lock guards it. */
#ifndef LD_WORKSPACE_H
#define LD_WORKSPACE_H

#include "abi.h"
#include "pool.h"

typedef struct {
    float *at;
    int64_t floats;
} Buffer;

/* What a thread makes for itself: the input of a product, see `prepare`; a panel, see `screened`. */
typedef struct {
    _Alignas(64) uint64_t number; /* of the product */
    Buffer normed;                /* (rows, K) */
    Buffer taken;                 /* (rows, K / 32) blocks, for the longest rows */
    Buffer panel;                 /* 16 rows of a head */
} Private;

typedef struct {
    Private mine[MOST_THREADS]; /* one for each thread */
    uint64_t products; /* prepared so far */
    Buffer normed;     /* (rows, D): input of a matrix, after the norm */
    Buffer taken;      /* (rows, K / 32) blocks of `mixed` */
    Buffer heads;      /* (rows, nh + 2 nkv, hs): queries, keys, values */
    Buffer parts;      /* of attention: (rows or QUERIES, nh, splits), PART_FLOATS each */
    Buffer done;       /* of attention: (QUERIES, nkv) counts */
    Buffer mixed;      /* (rows, nh, hs): output of attention */
    Buffer attended;   /* (rows, D): the stream after attention, or what replaces it */
    Buffer gate_up;    /* (rows, 2 I) */
    Buffer neurons;    /* (rows, I) */
    Buffer neurons_taken; /* (rows, I / 32) blocks */
    Buffer output;     /* (rows, D): the layer's output */
    Buffer low;        /* (r,): A x */
    Buffer correction; /* (D,) */
    Buffer preview;    /* (V,), rounded up to panels */
    Buffer tops;       /* (V / 16,) keys of 64 bits, see `Screening` */
    Buffer likely;     /* (V,) keys */
    Buffer packed;     /* K/V of a prompt (prompt.c) */
} Workspace;

enum { QUERIES = 8, SPLIT = 128 }; /* tokens that attend together; keys that a thread reads for them */
#define PART_FLOATS(layer) ((layer)->head_dim + 2)

/* The workspace, with room for a step of `rows` rows through these layers; NULL if there is no memory. */
Workspace *workspace_for_step(const Layer *layers, const Plan *plan, const Store *kv, int64_t count, int64_t rows);

/* The same for a matrix alone. */
Workspace *workspace_for_matrix(const Matrix *w, int64_t rows);

/* The same for a prompt with packed K/V of this many floats. */
Workspace *workspace_for_prompt(int64_t floats);

/* The same for a head with a screen. */
Workspace *workspace_for_screen(const Matrix *w, const Screen *s);

#endif
