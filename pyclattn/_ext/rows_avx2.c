/* AVX2 with FMA. */
#if defined(__x86_64__) || defined(__i386__)
#pragma GCC target("avx2,fma")
#define ISA avx2
#define VB 32
#define MR 4
#define NV 3
#include "rows_tile.h"
#endif
