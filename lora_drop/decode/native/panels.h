/* Matrices in a GGUF's own blocks of 32 weights, regrouped into panels of 16 rows, so that a vector holds a number of
 * each row. `ld_pack` makes them.
 *
 * A block of a Q4_1 panel has d and m (16 float16 each), then 4 x 16 words of 8 codes: byte i of a row's word j has the
 * codes of the block's weights 8j + i and, in its high bits, 8j + 4 + i. One of a Q8_0 panel has 16 float16 d, then
 * 8 x 16 words of 4 signed bytes: word j has the weights 4j..4j+3 of a row.
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

/* What a panel's block is multiplied by: 32 numbers of x. Where the processor has dot products of bytes they are whole
 * numbers of up to 23 bits, in three planes of bytes: x is about scale * (65536 high + 256 middle + low). What is
 * rounded away is at most 1.2e-7 of the largest in the block, and from there on sums over a block are exact. */
#ifdef __AVX512VNNI__
typedef struct {
    float scale, sum;        /* sum: of the whole numbers */
    int32_t first, rest;     /* -128 times the sums of `high`, and of 256 middle + low */
    int8_t digits[3][BLOCK]; /* high, middle, low */
} Taken;
#else
typedef struct {
    float sum, x[BLOCK];
} Taken;
#endif

/* Blocks of x, as the panels take them. */
void take(const float *x, int64_t blocks, Taken *taken);

/* A panel's 16 rows times `count` (at most PANEL_ROWS) rows of x, `blocks` long, to y; y's rows are `n` long. */
void panel_q4_1(const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n);
void panel_q8_0(const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n);

#endif
