#ifndef LD_LAYER_H
#define LD_LAYER_H

#include "attention.h"

/* The whole layer: h to `output`, with the stream after attention in `attended`. `change`: of its matrices, or NULL. */
void run_full(const Layer *l, const Pair *change, const float *h, const Tokens *t, Store *kv, Workspace *space);

/* A skipped layer at a LoRA step, of one token: h to `output` by the reuse rule; with `attention_only` the MLP still
 * runs on it. Returns ||d|| / ||cached|| where the step asks for it, or a NaN without a correction. */
float run_dropped(const Layer *l, const Plan *p, const Step *s, const float *h, Workspace *space);

#endif
