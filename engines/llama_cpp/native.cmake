# Included by CMake at ggml's project(): one library of the processor's code, with the instructions that GGML_AVX2 and
# its like say, not one for each instruction set. A variable that is set here wins over the cache entry of the same
# name (CMake's policy CMP0077).
set(GGML_CPU_ALL_VARIANTS OFF)
