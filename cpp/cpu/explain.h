// What a call would do, told instead of done.
#pragma once

#include "cpu/driver.h"
#include "cpu/plan.h"

namespace fastnorm {

// How many tensors of the view's shape a call reads and writes.
int inputs_of(const KernelArgs& args);
int outputs_of(const KernelArgs& args);

// Fills the problem's explanation where one is asked for: then nothing else is to be done.
bool explains(const Execution& execution, const Problem& problem, const Schedule& schedule,
              int coefficients_count);

}  // namespace fastnorm
