// The kernels of the columns traversal, compiled once per instruction set: see kernels.cpp.
#include FASTNORM_ISA_HEADER

#include "cpu/columns.h"

#include "cpu/traversal_kernels.h"

namespace fastnorm::FASTNORM_ISA {

constinit const TraversalKernels columns_kernels = traversal_kernels<Columns>();

}  // namespace fastnorm::FASTNORM_ISA
