/* What every machine of this architecture runs, with the panels of lanes_baseline.c. */
#define ISA baseline
#define VB 16
#if defined(__aarch64__)
#define MR 8
#define NV 3
#else
#define MR 4
#define NV 2
#endif
#include "winograd_tile.h"
