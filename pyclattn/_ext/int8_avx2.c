/* AVX2: two steps of 16 bits. 4 x 3 sums of 8 lanes. */
#if defined(__x86_64__) || defined(__i386__)
#ifdef __clang__
#include "x86.h"
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define TILE avx2
#define VB 32
#define MR 4
#define NV 3
#include "int8_tile.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
