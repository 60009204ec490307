/* AVX-512. */
#if defined(__x86_64__) || defined(__i386__)
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#define ISA avx512
#define VB 64
#define MR 8
#define NV 3
#include "rows_tile.h"
#endif
