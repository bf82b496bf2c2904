// What happens to features before their kernels: weights and biases as those take them, and the sum
// of prenorm.
#pragma once

#include "cuda/arguments.h"
#include "cuda/driver.h"

namespace fastnorm::cuda {

// values + offset in the accumulator type of a dtype.
void widen(const Execution& execution, DType dtype, const PerStatistic& values, std::int64_t count,
           double offset, char* to);

// The same divided by a power of two above them all, which *scale becomes: so that g * weight stays
// in range.
void widen_and_scale(const Execution& execution, DType dtype, const PerStatistic& values,
                     std::int64_t count, double offset, char* to, double* scale);

// to = a + b, rounded to the dtype. whole: packs are. to may be a or b.
void add_rows(const Execution& execution, DType dtype, const Rows& rows, bool whole,
              const Operand& a, const Operand& b, const Operand& to);

}  // namespace fastnorm::cuda
