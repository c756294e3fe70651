#ifndef LD_LAYER_H
#define LD_LAYER_H

#include "attention.h"

/* Run the whole layer from h to `output`; the stream after attention is in `attended`. */
void run_full(const Layer *l, const float *h, const Tokens *t, Store *kv, Workspace *space);

/* Run a skipped layer at a LoRA step, from h (one token) to `output`, by the reuse rule (rules.py in Python); with
 * `attention_only` the MLP runs on its result. */
void run_dropped(const Layer *l, const Plan *p, const Step *s, const float *h, Workspace *space);

#endif
