/* The screened head: a preview of all logits, and exact ones for the most likely tokens. */
#ifndef LD_SCREEN_H
#define LD_SCREEN_H

#include "matmul.h"

/* Logits (V,) of a normed state x (D,) with the head `w`. */
void screened(const Matrix *w, const Screen *s, const float *x, float *y, Workspace *space);

#endif
