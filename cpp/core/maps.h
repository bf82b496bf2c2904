// The two maps that every normalization ends in, over a value type V: a vector on the CPU, a
// scalar on CUDA.
#pragma once

#include "core/portable.h"

namespace fastnorm {

// z = centred(x) * scale + bias. What the members are: stats.h, Normalization.
template <class V>
struct NormalizeMap {
    V prescale, mean_hi, mean_lo, scale, bias;

    FASTNORM_FN V centred(V x) const { return fma(x, prescale, -mean_hi) - mean_lo; }
    FASTNORM_FN V affine(V centred) const { return fma(centred, scale, bias); }
};

// dx = (a * g + b * centred(x) + c) * scale. What the members are: stats.h, GradientCoefficients.
template <class V>
struct GradientMap {
    V a, b, c, scale;

    FASTNORM_FN V operator()(V g, V centred) const { return fma(a, g, fma(b, centred, c)) * scale; }
    // The same where mean and rstd are constants.
    FASTNORM_FN V of_frozen(V g) const { return a * g * scale; }
};

}  // namespace fastnorm
