/* Memory that a call works in. It grows and is kept for the next call; the pool's lock guards it. */
#ifndef LD_WORKSPACE_H
#define LD_WORKSPACE_H

#include "abi.h"

typedef struct {
    float *at;
    int64_t floats;
} Buffer;

typedef struct {
    Buffer normed;     /* (D,): what a matrix takes, after its norm */
    Buffer sums;       /* (K / 32,) for the longest rows of all: see `block_sums` */
    Buffer heads;      /* (nh + 2 nkv, hs): queries, keys, values */
    Buffer scores;     /* (nh, capacity) */
    Buffer mixed;      /* (nh, hs): what attention has read */
    Buffer attended;   /* (D,): the stream after attention, or what stands in for it */
    Buffer gate_up;    /* (2, I) */
    Buffer output;     /* (D,): the layer's output */
    Buffer low;        /* (r,): A h */
    Buffer correction; /* (D,) */
} Workspace;

/* The workspace, with room for any step through these layers; NULL where there is no memory for it. */
Workspace *workspace_for_step(const Layer *layers, const Plan *plan, const Store *kv, int64_t count);

/* The same for a matrix alone. */
Workspace *workspace_for_matrix(const Matrix *w);

#endif
