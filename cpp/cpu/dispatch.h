// Which of the compiled kernel tables runs: the first of a list that the machine supports, or the
// one that FASTNORM_ISA names. Decided once, at the first call.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fastnorm {

// Throws std::invalid_argument if FASTNORM_ISA names none of available_isas().
const KernelTable& active_kernels();

// Best first.
std::vector<std::string> available_isas();

// Throws std::invalid_argument if name is none of available_isas().
void activate_isa(const std::string& name);

}  // namespace fastnorm
