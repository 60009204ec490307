/* The intrinsics of every instruction set. Older clangs keep back those that the command line does not allow where they
 * take themselves for Microsoft's compiler. */
#ifndef PYCLATTN_X86_H
#define PYCLATTN_X86_H
#ifdef _MSC_VER
#pragma push_macro("_MSC_VER")
#undef _MSC_VER
#include <immintrin.h>
#pragma pop_macro("_MSC_VER")
#else
#include <immintrin.h>
#endif
#endif
