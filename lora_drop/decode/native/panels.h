/* Matrices in a GGUF's own blocks of 32 weights, regrouped into panels of 16 rows, so that a vector holds a number of
 * each row. `ld_pack` makes them.
 *
 * A block of a Q4_1 panel has d and m (16 float16 each), then 4 x 16 words of 8 codes: word j of a row has the codes of
 * the block's weights 8j..8j+7, from its low bits up. One of a Q8_0 panel has 16 float16 d, then 8 x 16 words of 4
 * signed bytes: word j has the weights 4j..4j+3 of a row.
 */
#ifndef LD_PANELS_H
#define LD_PANELS_H

#include <stdint.h>

enum { BLOCK = 32, Q4_BYTES = 20, Q8_BYTES = 34 }; /* weights of a block, and bytes that it takes a row */

/* Rows of x that are multiplied together, each block unpacked once: as many as registers hold. */
#ifdef __AVX512F__
enum { PANEL_ROWS = 8 };
#else
enum { PANEL_ROWS = 4 };
#endif

/* A panel's 16 rows times `count` (at most PANEL_ROWS) rows of x, to y; y's rows are `n` long. `sums` has the sums of x
 * over each block, which Q4_1's minimum multiplies. */
void panel_q4_1(const uint8_t *p, const float *x, const float *sums, int64_t blocks, int64_t count, float *y, int64_t n);
void panel_q8_0(const uint8_t *p, const float *x, int64_t blocks, int64_t count, float *y, int64_t n);

#endif
