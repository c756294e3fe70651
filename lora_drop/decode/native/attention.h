#ifndef LD_ATTENTION_H
#define LD_ATTENTION_H

#include "abi.h"
#include "workspace.h"

/* The tokens of a pass, one after the other. */
typedef struct {
    int64_t count;
    const float *cosine, *sine; /* (count, hs) of their positions */
} Tokens;

/* h plus its attention, of each token over what the store then holds up to it, into `attended`; K and V go into the
 * store. `change` is of the layer's matrices, or NULL. */
void attention(const Layer *l, const Pair *change, const float *h, const Tokens *t, Store *kv, Workspace *space);

/* K and V of a token alone: a skipped layer that still writes them. */
void write_kv(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space);

#endif
