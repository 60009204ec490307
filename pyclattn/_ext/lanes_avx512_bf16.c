/* AVX-512 with products of bfloat16 in pairs. */
#if defined(__x86_64__) || defined(__i386__)
#ifdef __clang__
#include "x86.h"
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
#define ISA avx512_bf16
#define BFLOAT16 1
#define VB 64
#define MR 8
#define NV 3
#include "panels.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
