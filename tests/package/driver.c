/* Runs a library of the kernels on stored inputs: driver LIBRARY SUFFIX INPUTS OUTPUTS; with LIBRARY alone it prints
 * the paths that the processor has. Each case is one layer and a head of one kind of numbers, for some rows: the rows
 * together must give, to the bit, what each gives alone (exit code 3). */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"

enum { CAPACITY = 64 };

static void *library;
static const char *suffix;

static void *named(const char *name) {
    char whole[64];
    snprintf(whole, sizeof whole, "%s%s", name, suffix);
    return dlsym(library, whole);
}

static void *room(int64_t bytes) { return calloc(1, (size_t)bytes + 64); }

static void *next(FILE *in) { /* bytes, after their number */
    int64_t bytes;
    if (fread(&bytes, sizeof bytes, 1, in) != 1) exit(2);
    void *data = room(bytes);
    if (fread(data, 1, (size_t)bytes, in) != (size_t)bytes) exit(2);
    return data;
}

static Matrix matrix(FILE *in, int64_t kind, int64_t n, int64_t k) {
    void *data = next(in), *rows = data;
    if (kind != F32 && kind != BF16) ((__typeof__(&ld_pack))named("ld_pack"))(rows, data = room(n * k * 4), n, k, kind);
    return (Matrix){.data = data, .n = n, .k = k, .kind = kind};
}

int main(int argc, char **argv) {
    library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    if (argc == 2) return puts(((__typeof__(&ld_paths))dlsym(library, "ld_paths"))()), 0;
    suffix = argv[2];
    FILE *in = fopen(argv[3], "rb"), *out = fopen(argv[4], "wb");
    __typeof__(&ld_step) step = (__typeof__(&ld_step))named("ld_step");
    __typeof__(&ld_prompt) prompt = (__typeof__(&ld_prompt))named("ld_prompt");
    ((__typeof__(&ld_threads))named("ld_threads"))(2);
    int64_t s[8]; /* kind, D, nh, nkv, hs, I, V, rows */
    while (fread(s, sizeof s, 1, in) == 1) {
        int64_t d = s[1], hs = s[4], inner = s[5], vocabulary = s[6], rows = s[7], kept = s[0] == F32 ? F32 : BF16;
        float *norms = next(in), *cosine = next(in), *sine = next(in), *h = next(in), *logits[2];
        void *query = next(in), *mixed = room(rows * s[2] * hs * 4);
        Layer layer = {norms, norms, NULL, matrix(in, s[0], (s[2] + 2 * s[3]) * hs, d), matrix(in, s[0], d, s[2] * hs),
                       matrix(in, s[0], 2 * inner, d), matrix(in, s[0], d, inner), d, s[2], s[3], hs, inner, 1e-5f};
        Ends ends = {.head = matrix(in, s[0], vocabulary, d), .norm = norms, .eps = 1e-5f};
        Plan plan = {0};
        for (int alone = 0; alone < 2; alone++) {
            int64_t count = alone ? 1 : rows, best[CAPACITY];
            float *x = memcpy(room(rows * d * 4), h, (size_t)(rows * d * 4));
            Store kv = {room(2 * s[3] * CAPACITY * hs * 4), CAPACITY, 0, kept};
            logits[alone] = room(rows * vocabulary * 4);
            for (int64_t r = 0; r < rows; r += count) {
                Step one = {.rows = count, .rule = SKIP};
                Answer answer = {NULL, count, logits[alone] + r * vocabulary, best, NULL};
                if (step(&ends, &layer, &plan, 1, &one, cosine + r * hs, sine + r * hs, &kv, x + r * d, &answer)) return 2;
            }
            if (prompt(&layer, &kv, rows, query, mixed)) return 2;
        }
        if (memcmp(logits[0], logits[1], (size_t)(rows * vocabulary * 4))) return 3;
        fwrite(logits[0], 4, (size_t)(rows * vocabulary), out);
        for (int64_t i = 0; i < rows * s[2] * hs; i++) { /* as float32 */
            uint32_t bits = kept == F32 ? ((uint32_t *)mixed)[i] : (uint32_t)((uint16_t *)mixed)[i] << 16;
            fwrite(&bits, 4, 1, out);
        }
    }
    return fclose(out) ? 2 : 0;
}
