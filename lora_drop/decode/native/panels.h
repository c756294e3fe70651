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

/* What a panel's block is multiplied by: 32 numbers of x. Where the processor has products of bytes they are whole
 * numbers of 15 bits and a sign, in two planes of bytes: x is about scale * (256 high + low). What is rounded away is at
 * most 1.6e-5 of the largest in the block (in llama.cpp, which keeps 7 bits, 4e-3), and from there on sums over a block
 * are exact. */
#if defined(__AVX512VNNI__) || (defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#define BYTE_DOTS
typedef struct {
    float scale, sum;        /* sum: of the whole numbers */
    int32_t shift;           /* -128 times it: what codes plus 128 give too much */
    int8_t digits[2][BLOCK]; /* high, low */
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
