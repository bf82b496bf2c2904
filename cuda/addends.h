// What is added up for each parameter, or channel, over sets that have one share of each: the
// samples of a norm of each sample by itself, or the parts of all rows under features. Sets are
// added in order, so that the bits are the same however they came about.
#pragma once

#include "core/problem.h"
#include "cuda/arguments.h"
#include "cuda/driver.h"

namespace fastnorm::cuda {

// An array of the first set's shares, then of the second's, and so on.
struct Addends {
    const Partial* values;
    std::int64_t sets, parameters;

    std::int64_t count() const { return sets * parameters; }
};

// Shares of dbias and dweight.
void add_up_gradients(const Execution& execution, const Addends& of, const PerStatistic& dweight,
                      const PerStatistic& dbias);

// Moments, each of so many values: the means' average, and that of the variances.
void update_running(const Execution& execution, const Addends& of, std::int64_t values,
                    const RunningStatistics& running);

}  // namespace fastnorm::cuda
