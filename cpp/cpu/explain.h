// What a call would do, told instead of done.
#pragma once

#include <initializer_list>

#include "cpu/driver.h"
#include "cpu/plan.h"

namespace fastnorm {

// How many of these tensors there are, and how many a call reads and writes in all.
int count_given(std::initializer_list<const Operand*> operands);
int tensors_of(const Tensors& tensors);

// Fills the problem's explanation where one is asked for: then nothing else is to be done.
bool explains(const Execution& execution, const Problem& problem, const Schedule& schedule,
              int coefficients_count);

}  // namespace fastnorm
