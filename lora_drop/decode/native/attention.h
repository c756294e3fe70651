#ifndef LD_ATTENTION_H
#define LD_ATTENTION_H

#include "abi.h"
#include "workspace.h"

typedef struct {
    const float *cosine, *sine; /* (hs,) of the token's position */
} Rope;

/* h plus its attention over all that the store then holds, into `attended`; K and V go into the store. */
void attention(const Layer *l, const float *h, const Rope *rope, Store *kv, Workspace *space);

/* K and V of a token alone: a skipped layer that still writes them. */
void write_kv(const Layer *l, const float *h, const Rope *rope, Store *kv, Workspace *space);

#endif
