/* Memory that a call works in. It grows and is kept for the next call; the pool's lock guards it. */
#ifndef LD_WORKSPACE_H
#define LD_WORKSPACE_H

#include "abi.h"

typedef struct {
    float *at;
    int64_t floats;
} Buffer;

typedef struct {
    Buffer normed;     /* (rows, D): what a matrix takes, after its norm */
    Buffer taken;      /* (rows, K / 32) blocks, for the longest rows of all: see `prepare` */
    Buffer heads;      /* (rows, nh + 2 nkv, hs): queries, keys, values */
    Buffer parts;      /* of attention: (rows or QUERIES, nh, splits) of PART_FLOATS */
    Buffer mixed;      /* (rows, nh, hs): what attention has read */
    Buffer attended;   /* (rows, D): the stream after attention, or what stands in for it */
    Buffer gate_up;    /* (rows, 2 I) */
    Buffer neurons;    /* (rows, I) */
    Buffer neurons_taken; /* (rows, I / 32) blocks */
    Buffer output;     /* (rows, D): the layer's output */
    Buffer low;        /* (r,): A x */
    Buffer correction; /* (D,) */
    Buffer preview;    /* (V,), rounded up to panels */
    Buffer tops;       /* (V / 16,) keys of 64 bits: see `Screening`, and so are the next */
    Buffer found;      /* (V,) keys */
    Buffer packed;     /* K/V of a prompt, see prompt.c */
    Buffer panels;     /* of each 16 of the best */
} Workspace;

enum { QUERIES = 8, SPLIT = 128 }; /* tokens that attend at a time; keys that one thread reads for them */
#define PART_FLOATS(layer) ((layer)->head_dim + 2)

/* The workspace, with room for any step of these rows through these layers; NULL where there is no memory for it. */
Workspace *workspace_for_step(const Layer *layers, const Plan *plan, const Store *kv, int64_t count, int64_t rows);

/* The same for a matrix alone. */
Workspace *workspace_for_matrix(const Matrix *w, int64_t rows);

/* The same for a prompt whose packed K/V take so many floats. */
Workspace *workspace_for_prompt(int64_t floats);

/* The same for a head with a screen. */
Workspace *workspace_for_screen(const Matrix *w, const Screen *s);

#endif
