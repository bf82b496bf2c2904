// From a problem to launches on a device: which kernels, and the memory where their blocks meet.
// The same ops as those of cpu/driver.h; everything that arrives here is valid, and on the device.
#pragma once

#include <memory>

#include "core/problem.h"
#include "cuda/machine.h"

namespace fastnorm::cuda {

struct Execution {
    const char* op;  // for errors
    int device;
    Stream stream;
};

void normalize(const Execution& execution, const Problem& problem, const PerStatistic& mean,
               const PerStatistic& var, double eps);

void normalize_by_own_statistics(const Execution& execution, const Problem& problem, double eps,
                                 const PerStatistic& mean, const PerStatistic& rstd,
                                 const RunningStatistics& running);

void normalize_backward(const Execution& execution, const Problem& problem,
                        const PerStatistic& mean, const PerStatistic& rstd, bool frozen,
                        const PerStatistic& dweight, const PerStatistic& dbias);

// The mask's bytes behind its signature.
std::int64_t mask_bytes(const View& view, DType dtype);

// Memory that is given back in the stream's order, a copy between two tensors of one shape and
// dtype, one value for all of a vector, and 1 / sqrt(var + eps).
std::shared_ptr<char> allocate(const Execution& execution, std::size_t bytes);
void copy_elements(const Execution& execution, const TensorView& to, const TensorView& from);
void fill(const Execution& execution, const PerStatistic& to, std::int64_t count, double value);
void rstd_of(const Execution& execution, const PerStatistic& to, const PerStatistic& var,
             std::int64_t count, double eps);

}  // namespace fastnorm::cuda
