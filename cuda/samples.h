// What the channels of a norm of each sample add up over all samples, from what their statistics
// have left, in order: an array of those of the first sample, then of the second, and so on.
#pragma once

#include "core/problem.h"
#include "cuda/arguments.h"
#include "cuda/driver.h"

namespace fastnorm::cuda {

struct OfStats {
    const Partial* values;
    std::int64_t samples, channels;
};

// From the statistics' sums.
void add_up_gradients(const Execution& execution, const OfStats& of, const PerStatistic& dweight,
                      const PerStatistic& dbias);

// From their moments, each of so many values: the means' average, and that of the variances.
void update_running(const Execution& execution, const OfStats& of, std::int64_t values,
                    const RunningStatistics& running);

}  // namespace fastnorm::cuda
