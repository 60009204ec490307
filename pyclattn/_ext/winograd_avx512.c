/* AVX-512. */
#if defined(__x86_64__) || defined(__i386__)
#ifdef __clang__
#include "x86.h"
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
#define ISA avx512
#define VB 64
#define MR 8
#define NV 3
#include "winograd_tile.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
