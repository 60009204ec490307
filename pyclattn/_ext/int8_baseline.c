/* What every machine of this architecture runs: SSE2 on x86, NEON on arm64. */
#define ISA baseline
#define TILE baseline
#define VB 16
#if defined(__aarch64__)
#define MR 8
#define NV 3
#else
#define MR 4
#define NV 2
#endif
#include "int8_tile.h"
