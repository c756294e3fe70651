#ifndef LD_ATTENTION_H
#define LD_ATTENTION_H

#include "abi.h"
#include "workspace.h"

/* Consecutive tokens of a pass. */
typedef struct {
    int64_t count;
    const float *cosine, *sine; /* (count, hs) of their positions */
} Tokens;

/* Write h + attention to `attended`, and K and V to the store; each token sees the store up to itself. */
void attention(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space);

/* Write K and V alone, for a skipped layer with kv="write". */
void write_kv(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space);

#endif
