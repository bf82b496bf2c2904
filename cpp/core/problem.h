// One call as the backends take it: tensors under their view, the epilogue, what there is per
// statistic. Everything in it is valid.
#pragma once

#include <functional>

#include "core/per_statistic.h"
#include "core/view.h"

namespace fastnorm {

// What a call reads and writes element by element. What an op does not have is empty.
struct Tensors {
    View view;
    Operand x, residual, y;         // forward
    Operand dy, dx, dresidual;      // backward (with x, residual)
    Operand sum;                    // forward: if given, x + residual, which is then normalized
    Operand dsum;                   // backward: added to dx
    unsigned char* mask = nullptr;  // on a device from its signature on, else behind it
    std::uint64_t mask_signature = 0;
    double alpha = 0, beta = 0;  // the activation's parameters
    bool centred = true;         // else the mean counts as 0, and the variance is the mean square
    bool cast_before_weight = false;  // of features: (x - mean) * rstd is rounded to x's dtype
};

// What every op has.
struct Problem {
    Tensors tensors;
    DType dtype = DType::float32;
    ActivationKind activation = ActivationKind::identity;
    PerStatistic weight, bias;
    double weight_offset = 0;  // of features: added to each weight
    // On a device, memory of so many bytes for partial results; empty: there is a pool.
    std::function<char*(std::int64_t bytes)> scratch;
    Explanation* explanation = nullptr;  // if given: it is filled, and nothing is computed
};

struct RunningStatistics {
    PerStatistic mean, var;
    double momentum = 0;
    bool unbiased = true;
};

}  // namespace fastnorm
