// The kernels of the features traversal, compiled once per instruction set: see kernels.cpp.
#include FASTNORM_ISA_HEADER

#include "cpu/features.h"

#include "cpu/traversal_kernels.h"

namespace fastnorm::FASTNORM_ISA {

constinit const TraversalKernels features_kernels = traversal_kernels<Features>();

}  // namespace fastnorm::FASTNORM_ISA
