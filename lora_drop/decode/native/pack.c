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

/* Some bits of each of 8 bytes. */
INLINE uint64_t bits_of(const uint8_t *in, int shift, uint64_t bits) {
    uint64_t word;
    memcpy(&word, in, 8);
    return word >> shift & bits * 0x0101010101010101;
}

/* Copy 4 bits of each of 8 codes: word `j` of the row's block. */
INLINE void spread_nibbles(const uint8_t *in, int shift, uint8_t *out, int row, int j) {
    uint64_t codes = bits_of(in, shift, 15);
    uint32_t word = (uint32_t)(codes | codes >> 28);
    spread(&word, out + 4 * LANES * j, row, 1, 4);
}

/* The file: byte i of 16 has weight i in its low bits and weight 16 + i in its high bits. */
INLINE void pack_q4(const uint8_t *in, uint8_t *out, int row, int scales) {
    spread(in, out, row, scales, 2);
    for (int j = 0; j < 4; j++)
        spread_nibbles(in + 2 * scales + j % 2 * 8, j / 2 * 4, out + 2 * LANES * scales, row, j);
}

static void pack_q8_0(const uint8_t *in, uint8_t *out, int row) {
    spread(in, out, row, 1, 2);
    spread(in + 2, out + 2 * LANES, row, 8, 4);
}

/* The file: d, m, scales, then 32 bytes for each 64 weights, the first 32 in their low bits, the others in the high. */
static void pack_q4_k(const uint8_t *in, uint8_t *out, int row) {
    spread(in, out, row, 2, 2);
    spread(in + 4, out + 4 * LANES, row, 3, 4);
    out += LANES * (4 + K_SCALES);
    for (int j = 0; j < SUPER / BLOCK; j++, out += LANES * NIBBLES)
        for (int i = 0; i < 4; i++) spread_nibbles(in + 16 + j / 2 * BLOCK + 8 * i, j % 2 * 4, out, row, i);
}

/* The file: 64 bytes of low bits for each 128 weights (32 bytes with the first and the third 32 weights, 32 with the
 * second and the fourth), then 32 bytes of high bits for each 128 weights, two bits of each of the four; then the
 * scales, and d. */
static void pack_q6_k(const uint8_t *in, uint8_t *out, int row) {
    const uint8_t *high = in + SUPER / 2, *scales = high + SUPER / 4;
    spread(scales + K_SCALES_6, out, row, 1, 2);
    spread(scales, out + 2 * LANES, row, 4, 4);
    out += LANES * (2 + K_SCALES_6);
    for (int j = 0; j < SUPER / BLOCK; j++, out += LANES * (NIBBLES + HIGH_BITS)) {
        for (int i = 0; i < 4; i++)
            spread_nibbles(in + j / 4 * 64 + j % 2 * BLOCK + 8 * i, j % 4 / 2 * 4, out, row, i);
        for (int i = 0; i < 2; i++) {
            const uint8_t *codes = high + j / 4 * BLOCK + HALF * i;
            uint64_t twos = bits_of(codes, j % 4 * 2, 3) | bits_of(codes + 8, j % 4 * 2, 3) << 4;
            uint32_t word = (uint32_t)(twos | twos >> 30);
            spread(&word, out + LANES * (NIBBLES + 4 * i), row, 1, 4);
        }
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
