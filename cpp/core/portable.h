// The one macro that lets a formula of core/ run on the CPU and in CUDA. Always inlined: no
// out-of-line copy can exist, so the linker can never pick one that was compiled for another
// instruction set.
#pragma once

#if defined(__CUDACC__)
#define FASTNORM_FN __host__ __device__ __forceinline__
#else
#define FASTNORM_FN inline __attribute__((always_inline))
#endif
