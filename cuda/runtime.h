// The CUDA runtime, as block_device.h needs it.
#pragma once

#include "cuda/machine.h"

namespace fastnorm::cuda {

// Launches a __global__ function; raises what shared memory and cluster it may have.
void launch_kernel(const char* op, const char* kernel, const void* function, void** arguments,
                   const Shape& shape, Stream stream);

}  // namespace fastnorm::cuda
