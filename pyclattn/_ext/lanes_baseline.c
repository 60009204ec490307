/* What every machine of this architecture runs: SSE2 on x86 (16 registers), NEON on arm64 (32). */
#define ISA baseline
#define VB 16
#if defined(__aarch64__)
#define MR 8
#define NV 3
#else
#define MR 4
#define NV 2
#endif
#include "panels.h"
