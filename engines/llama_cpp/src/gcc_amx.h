// Included before every C++ file of llama.cpp by tools/build_engine.py.
//
// GCC's _tile_loadconfig tells the compiler that it reads eight bytes (seen in GCC 12; later ones have a
// builtin). It reads 64, and the optimiser drops what ggml wrote into the other 56: tiles without rows, and
// SIGILL at their first use, on every processor with AMX. This one says what it reads.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

static inline void tile_loadconfig_of_64_bytes(const void * config) {
    struct tile_config {
        char bytes[64];
    };
    __asm__ volatile("ldtilecfg\t%0" : : "m"(*static_cast<const tile_config *>(config)));
}

#define _tile_loadconfig tile_loadconfig_of_64_bytes
#endif
