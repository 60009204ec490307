/* AVX2 with FMA. */
#if defined(__x86_64__) || defined(__i386__)
#ifdef __clang__
#include "x86.h"
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define VB 32
#define MR 4
#define NV 3
#include "winograd_tile.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
