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
FASTNORM_FN float round_nearest(float x) { return ::rintf(x); }
FASTNORM_FN double round_nearest(double x) { return ::rint(x); }

// NaN converts to some integer or other, which must not be undefined.
FASTNORM_FN float exp2_int(float v) {
    const std::int32_t n = v == v ? static_cast<std::int32_t>(v) : 0;
    return bit_copy<float>(static_cast<std::uint32_t>(n + 127) << 23);
}
FASTNORM_FN double exp2_int(double v) {
    const std::int64_t n = v == v ? static_cast<std::int64_t>(v) : 0;
    return bit_copy<double>(static_cast<std::uint64_t>(n + 1023) << 52);
}

template <class A>
FASTNORM_FN A select(bool condition, A yes, A no) {
    return condition ? yes : no;
}

}  // namespace fastnorm
