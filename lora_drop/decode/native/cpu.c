/* The paths of the kernels that this processor has. Read by CPUID, as zig's `__builtin_cpu_supports` returns 0. */
#include "abi.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* What compilers use at x86-64-v3 and -v4: of leaf 1 SSE3 to AVX and F16C, of 7 AVX2, BMI and AVX-512 F, DQ, CD, BW
 * and VL, of 0x80000001 LAHF and LZCNT; and the registers that the system saves. */
enum { V3_1 = 0x38d83201, V3_7 = 1 << 3 | 1 << 5 | 1 << 8, V3_EXTENDED = 1 | 1 << 5, YMM = 0x06, ZMM = 0xe6 };
#define V4_7 (1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31)

static int has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

const char *ld_paths(void) {
    uint32_t a, d, b, first, seventh, c, extended, saved;
    if (!__get_cpuid(1, &a, &b, &first, &d) || !has(first, V3_1)) return "plain";
    __asm__("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if (!has(saved, YMM) || !__get_cpuid_count(7, 0, &a, &seventh, &c, &d) || !has(seventh, V3_7)) return "plain";
    if (!__get_cpuid(0x80000001, &a, &b, &extended, &d) || !has(extended, V3_EXTENDED)) return "plain";
    if (!has(saved, ZMM) || !has(seventh, V4_7)) return "plain avx2";
    if (!has(c, 1 << 11)) return "plain avx2 avx512";
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !has(a, 1 << 5)) return "plain avx2 avx512 avx512-vnni";
    return "plain avx2 avx512 avx512-vnni avx512-vnni-bf16";
}

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dots(void) { return (getauxval(AT_HWCAP) >> 20) & 1; } /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int has_dots(void) {
    int has = 0;
    size_t size = sizeof has;
    return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0) && has;
}
#else
static int has_dots(void) { return 0; }
#endif

const char *ld_paths(void) { return has_dots() ? "neon neon-dot" : "neon"; }

#else

const char *ld_paths(void) { return "plain"; }

#endif
