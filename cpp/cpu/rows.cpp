// The kernels of the rows traversal, compiled once per instruction set: see kernels.cpp.
#include FASTNORM_ISA_HEADER

#include "cpu/rows.h"

#include "cpu/traversal_kernels.h"

namespace fastnorm::FASTNORM_ISA {

constinit const TraversalKernels rows_kernels = traversal_kernels<Rows>();

}  // namespace fastnorm::FASTNORM_ISA
