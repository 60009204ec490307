/* What every machine of this architecture runs. */
#define ISA baseline
#define VB 16
#define MR 4
#define NV 2
#include "rows_tile.h"
