/* Matrices in a GGUF's own blocks, regrouped into panels of 16 rows, so that a vector holds a number of each row.
 * `ld_pack` (pack.c) makes them, of as many bytes.
 *
 * A block of a panel has the scales of the 16 rows, one row beside the other, then for each 32 weights their codes, in
 * words of a row:
 *   Q4_0  d (float16); 4 words of 8 codes: byte i of word j has the codes of the weights 8j + i and, in its high bits,
 *         8j + 4 + i. A weight is d (code - 8).
 *   Q4_1  d and m (float16); the same words. d code + m.
 *   Q8_0  d; 8 words of 4 signed bytes. d code.
 *   Q4_K  256 weights: d and m; 3 words with a scale s and a minimum t of 6 bits for each 32 weights, as the file has
 *         them; then 8 times the words of Q4_1. (d s) code - m t, and both products are exact in float32.
 *   Q6_K  256 weights: d; 4 words with a signed byte s for each 16 weights; then 8 times the words of Q4_1 with the low
 *         bits, and 2 words with the high ones: byte i of word j has those of 16j + i, + 4, + 8, + 12.
 *         (d s) (code - 32).
 */
#ifndef LD_PANELS_H
#define LD_PANELS_H

#include <stdint.h>

enum { BLOCK = 32, HALF = 16, SUPER = 256 }; /* weights: of a block, and of one of Q4_K or Q6_K */
enum { NIBBLES = 16, HIGH_BITS = 8, K_SCALES = 12, K_SCALES_6 = 16 }; /* bytes of a row's parts of a block */

/* Rows of x that are multiplied together, each block unpacked once: as many as registers hold. */
#ifdef __AVX512F__
enum { PANEL_ROWS = 8 };
#else
enum { PANEL_ROWS = 4 };
#endif

/* What a panel's block is multiplied by: 32 numbers of x. Where the processor has products of bytes they are whole
 * numbers of 15 bits and a sign, in two planes of bytes: x is about scale * (256 high + low). What is rounded away is at
 * most 1.6e-5 of the largest in the block (in llama.cpp, which keeps 7 bits, 4e-3), and from there on sums over a block
 * are exact. Elsewhere they are what they are, and the scale is 1. */
#if defined(__AVX512VNNI__) || (defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#define BYTE_DOTS
typedef struct {
    float scale, sum;        /* sum: of the whole numbers */
    int32_t shift;           /* -128 times it: what codes plus 128 give too much */
    int32_t shifts[2];       /* what each 16 codes plus 32 do */
    int8_t digits[2][BLOCK]; /* high, low */
} Taken;
#else
typedef struct {
    float scale, sum, x[BLOCK];
} Taken;
#endif

/* Blocks of x, as the panels take them. */
void take(const float *x, int64_t blocks, Taken *taken);

/* Bytes that k weights of a row take. */
int64_t blocks_bytes(int64_t kind, int64_t k);

/* A row of k weights, as the file has them, to its place in a panel. */
void pack_row(const uint8_t *in, uint8_t *panel, int row, int64_t k, int64_t kind);

/* A panel's 16 rows times `count` (at most PANEL_ROWS) rows of x, which are `blocks` times 32 long, to y; y's rows are
 * `n` long. */
void panel_times(int64_t kind, const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n);

#endif
