/* Rows of GGUF blocks to panels (panels.h): the same bits in another order. */
#include "abi.h"
#include "panels.h"
#include "vec.h"

int64_t blocks_bytes(int64_t kind, int64_t k) {
    switch (kind) {
    case Q4_0: return k / BLOCK * 18;
    case Q4_1: return k / BLOCK * 20;
    case Q8_0: return k / BLOCK * 34;
    case Q4_K: return k / SUPER * 144;
    default: return k / SUPER * 210; /* Q6_K */
    }
}

/* Copy `count` words or half words of a row to their places among those of the 16 rows. */
INLINE void spread(const void *in, uint8_t *out, int row, int count, int size) {
    const uint8_t *from = in;
    for (int j = 0; j < count; j++) memcpy(out + size * (LANES * j + row), from + size * j, (size_t)size);
}

INLINE uint32_t word_of(const uint8_t *in, int i) {
    uint32_t word;
    memcpy(&word, in + 4 * i, 4);
    return word;
}

/* Copy the low 4 bits of 32 codes, 4 in a word. */
INLINE void spread_nibbles(const uint32_t *codes, uint8_t *out, int row) {
    uint32_t words[4];
    for (int j = 0; j < 4; j++) words[j] = (codes[2 * j] & 0x0f0f0f0f) | (codes[2 * j + 1] & 0x0f0f0f0f) << 4;
    spread(words, out, row, 4, 4);
}

/* The file: byte i of 16 has weight i in its low bits and weight 16 + i in its high bits. */
INLINE void pack_q4(const uint8_t *in, uint8_t *out, int row, int scales) {
    uint32_t codes[8];
    spread(in, out, row, scales, 2);
    for (int i = 0; i < 8; i++) codes[i] = word_of(in + 2 * scales, i % 4) >> i / 4 * 4;
    spread_nibbles(codes, out + 2 * LANES * scales, row);
}

static void pack_q8_0(const uint8_t *in, uint8_t *out, int row) {
    spread(in, out, row, 1, 2);
    spread(in + 2, out + 2 * LANES, row, 8, 4);
}

/* The file: d, m, scales, then 32 bytes for each 64 weights, the first 32 in their low bits, the others in the high. */
static void pack_q4_k(const uint8_t *in, uint8_t *out, int row) {
    uint32_t codes[8];
    spread(in, out, row, 2, 2);
    spread(in + 4, out + 4 * LANES, row, 3, 4);
    for (int j = 0; j < SUPER / BLOCK; j++) {
        for (int i = 0; i < 8; i++) codes[i] = word_of(in + 16 + j / 2 * BLOCK, i) >> j % 2 * 4;
        spread_nibbles(codes, out + LANES * (4 + K_SCALES + j * NIBBLES), row);
    }
}

/* The file: 64 bytes of low bits for each 128 weights (32 bytes with the first and the third 32 weights, 32 with the
 * second and the fourth), then 32 bytes of high bits for each 128 weights, two bits of each of the four; then the
 * scales, and d. */
static void pack_q6_k(const uint8_t *in, uint8_t *out, int row) {
    const uint8_t *high = in + SUPER / 2, *scales = high + SUPER / 4;
    spread(scales + K_SCALES_6, out, row, 1, 2);
    spread(scales, out + 2 * LANES, row, 4, 4);
    for (int j = 0; j < SUPER / BLOCK; j++) {
        uint32_t codes[8], words[2] = {0};
        uint8_t *block = out + LANES * (2 + K_SCALES_6 + j * (NIBBLES + HIGH_BITS));
        for (int i = 0; i < 8; i++) {
            codes[i] = word_of(in + j / 4 * 64 + j % 2 * 32, i) >> j % 4 / 2 * 4;
            words[i / 4] |= (word_of(high + j / 4 * 32, i) >> j % 4 * 2 & 0x03030303) << i % 4 * 2;
        }
        spread_nibbles(codes, block, row);
        spread(words, block + LANES * NIBBLES, row, 2, 4);
    }
}

void pack_row(const uint8_t *in, uint8_t *panel, int row, int64_t k, int64_t kind) {
    int64_t weights = kind == Q4_K || kind == Q6_K ? SUPER : BLOCK, size = blocks_bytes(kind, weights);
    for (int64_t b = 0; b < k / weights; b++, in += size, panel += LANES * size) switch (kind) {
        case Q4_0: pack_q4(in, panel, row, 1); break;
        case Q4_1: pack_q4(in, panel, row, 2); break;
        case Q8_0: pack_q8_0(in, panel, row); break;
        case Q4_K: pack_q4_k(in, panel, row); break;
        default: pack_q6_k(in, panel, row);
        }
}

void ld_pack(const uint8_t *source, uint8_t *target, int64_t n, int64_t k, int64_t kind) {
    int64_t bytes = blocks_bytes(kind, k);
    for (int64_t r = 0; r < n; r++)
        pack_row(source + r * bytes, target + r / LANES * LANES * bytes, (int)(r % LANES), k, kind);
}
