/* Matrices in the blocks of a GGUF file, regrouped into panels of 16 rows, so that a vector holds one number of each
 * row. `ld_pack` (pack.c) makes them; they take as many bytes.
 *
 * A block of a panel has the scales of its 16 rows side by side, then the codes of each 32 weights, in words that are
 * side by side for the 16 rows:
 *   Q4_0  d (float16); 4 words of 8 codes: byte i of word j has the code of weight 8j + i in its low bits and that of
 *         8j + 4 + i in its high bits. A weight is d (code - 8).
 *   Q4_1  d and m (float16); the same words. A weight is d code + m.
 *   Q8_0  d; 8 words of 4 signed bytes. A weight is d code.
 *   Q4_K  256 weights: d and m; 3 words with a scale s and a minimum t, of 6 bits each, for each 32 weights, as in the
 *         file; then the words of Q4_1 eight times. A weight is (d s) code - m t; both products are exact in float32.
 *   Q6_K  256 weights: d; 4 words with a signed byte s for each 16 weights; then eight times the words of Q4_1 with the
 *         low bits, and 2 words with the high bits: byte i of word j has those of 16j + i, + 4, + 8, + 12. A weight is
 *         (d s) (code - 32).
 */
#ifndef LD_PANELS_H
#define LD_PANELS_H

#include <stdint.h>

enum { BLOCK = 32, HALF = 16, SUPER = 256 }; /* weights of a block; SUPER: of Q4_K and Q6_K */
enum { NIBBLES = 16, HIGH_BITS = 8, K_SCALES = 12, K_SCALES_6 = 16 }; /* bytes of a row in parts of a block */

/* Rows of x that share the unpacking of each block: as many as the registers hold. */
#ifdef __AVX512F__
enum { PANEL_ROWS = 8 };
#else
enum { PANEL_ROWS = 4 };
#endif

/* 32 numbers of x, in the form that a panel's block is multiplied by. On a processor with byte products they are whole
 * numbers of 15 bits and a sign, in two planes of bytes: x is about scale * (256 high + low). The rounding error is at
 * most 1.6e-5 of the block's largest number (4e-3 in llama.cpp, which keeps 7 bits), and sums over a block are exact.
 * On other processors they are floats and the scale is 1. */
#if defined(__AVX512VNNI__) || (defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)) \
    || defined(__ARM_FEATURE_DOTPROD)
#define BYTE_DOTS
typedef struct {
    float scale, sum;        /* sum of the whole numbers */
    int32_t shift;           /* -128 times it: corrects for codes stored plus 128 */
    int32_t shifts[2];       /* of each 16 codes, stored plus 32 */
    int8_t digits[2][BLOCK]; /* high, low */
} Taken;
#else
typedef struct {
    float scale, sum, x[BLOCK];
} Taken;
#endif

/* Convert `blocks` blocks of x. */
void prepare_input(const float *x, int64_t blocks, Taken *taken);

/* Bytes of k weights of a row. */
int64_t blocks_bytes(int64_t kind, int64_t k);

/* Copy a row of k weights from the file's blocks to its place in a panel. */
void pack_row(const uint8_t *in, uint8_t *panel, int row, int64_t k, int64_t kind);

/* Multiply a panel's 16 rows by `count` (at most PANEL_ROWS) rows of x of 32 `blocks` numbers each; y's rows have `n`
 * numbers. */
void panel_times(int64_t kind, const uint8_t *p, const Taken *x, int64_t blocks, int64_t count, float *y, int64_t n);

/* The same, to the bit, for one row of x and 16 rows that lie anywhere, in the file's order. Returns 0 where it has
 * no kernel for them: that is, unless they are Q8_0 and x is whole numbers. */
int rows_times(int64_t kind, const uint8_t *const *rows, const Taken *x, int64_t blocks, float *y);

#endif
