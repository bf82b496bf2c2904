// float and double as value types: the operations that core/elementary.h and core/maps.h ask of
// one. To be included before them.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtypes.h"
#include "core/portable.h"

namespace fastnorm {

FASTNORM_FN float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FASTNORM_FN double fma(double a, double b, double c) { return ::fma(a, b, c); }
FASTNORM_FN float abs(float x) { return ::fabsf(x); }
FASTNORM_FN double abs(double x) { return ::fabs(x); }

FASTNORM_FN float low_bits_as_exponent(float x) {
    return bit_copy<float>(bit_copy<std::uint32_t>(x) << 23);
}
FASTNORM_FN double low_bits_as_exponent(double x) {
    return bit_copy<double>(bit_copy<std::uint64_t>(x) << 52);
}

template <class A>
FASTNORM_FN A select(bool condition, A yes, A no) {
    return condition ? yes : no;
}

}  // namespace fastnorm
