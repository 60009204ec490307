/* Which vector instructions processor and operating system have. Asked here, since what __builtin_cpu_supports reads
 * lies in a library that extensions for Windows are not linked with, and not every clang knows all the names. */
#ifndef PYCLATTN_CPU_H
#define PYCLATTN_CPU_H

enum { CPU_AVX2 = 1, CPU_AVXVNNI = 2, CPU_AVX512 = 4, CPU_AVX512_VNNI = 8, CPU_AVX512_BF16 = 16 };

#if defined(__x86_64__) || defined(__i386__)
typedef struct {
    unsigned a, b, c, d;
} cpu_words;

static inline cpu_words cpu_ask(unsigned leaf, unsigned part) {
    cpu_words w;
    __asm__ volatile("cpuid" : "=a"(w.a), "=b"(w.b), "=c"(w.c), "=d"(w.d) : "a"(leaf), "c"(part));
    return w;
}

static inline int cpu_has(unsigned word, int bit) { return word >> bit & 1; }

/* AVX2 with FMA; AVX-512 F, VL, BW and DQ with both. The numbers are of bits in cpuid's leaves 1 and 7. */
static int cpu_look(void) {
    if (cpu_ask(0, 0).a < 7) return 0;
    cpu_words basic = cpu_ask(1, 0), more = cpu_ask(7, 0), most = {0, 0, 0, 0};
    if (more.a >= 1) most = cpu_ask(7, 1);
    if (!cpu_has(basic.c, 27)) return 0; /* the system does not say which registers it keeps */
    unsigned kept, upper;
    __asm__ volatile("xgetbv" : "=a"(kept), "=d"(upper) : "c"(0));
    if ((kept & 0x06) != 0x06 || !cpu_has(basic.c, 12) || !cpu_has(basic.c, 28) || !cpu_has(more.b, 5)) return 0;
    int found = CPU_AVX2 | (cpu_has(most.a, 4) ? CPU_AVXVNNI : 0);
    int has_avx512 = cpu_has(more.b, 16) && cpu_has(more.b, 17) && cpu_has(more.b, 30) && cpu_has(more.b, 31);
    if ((kept & 0xe6) != 0xe6 || !has_avx512) return found;
    found |= CPU_AVX512 | (cpu_has(more.c, 11) ? CPU_AVX512_VNNI : 0) | (cpu_has(most.a, 5) ? CPU_AVX512_BF16 : 0);
    return found;
}
#else
static int cpu_look(void) { return 0; }
#endif

/* A sum of the names above. Looked up once, since a virtual machine takes microseconds to answer. */
static inline int cpu_features(void) {
    static int known = -1; /* threads that come at once find the same */
    if (known < 0) known = cpu_look();
    return known;
}
#endif
