// Storage types and the type that arithmetic on them uses: float for the 16-bit types and float32,
// double for float64. Conversions to 16 bits round to nearest even; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm {

struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

template <class T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <class T>
using accumulator_t = typename AccumulatorOf<T>::type;

template <class To, class From>
FASTNORM_FN To bit_copy(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

FASTNORM_FN float to_float(float x) { return x; }
FASTNORM_FN double to_float(double x) { return x; }
FASTNORM_FN float to_float(BFloat16 x) {
    return bit_copy<float>(static_cast<std::uint32_t>(x.bits) << 16);
}
FASTNORM_FN float to_float(Half x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
    const std::uint32_t exponent = (x.bits >> 10) & 0x1fu;
    const std::uint32_t mantissa = x.bits & 0x3ffu;
    if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in float
        return bit_copy<float>(bit_copy<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24f) |
                               sign);
    }
    const std::uint32_t widened = exponent == 31 ? 0xffu : exponent + 112u;
    return bit_copy<float>(sign | (widened << 23) | (mantissa << 13));
}

FASTNORM_FN void from_float(float x, float& to) { to = x; }
FASTNORM_FN void from_float(double x, double& to) { to = x; }
FASTNORM_FN void from_float(float x, BFloat16& to) {
    const std::uint32_t u = bit_copy<std::uint32_t>(x);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    to.bits = nan ? static_cast<std::uint16_t>((u >> 16) | 0x40u)
                  : static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
FASTNORM_FN void from_float(float x, Half& to) {
    const std::uint32_t u = bit_copy<std::uint32_t>(x);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    const std::uint32_t magnitude = u & 0x7fffffffu;
    std::uint32_t bits;
    if (magnitude > 0x7f800000u) {
        bits = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x47800000u) {  // 65536 and above, infinity included
        bits = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: the adder rounds to multiples of 2^-24
        bits = bit_copy<std::uint32_t>(bit_copy<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        bits = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    to.bits = static_cast<std::uint16_t>(bits | sign);
}

// A double to a narrower type by way of float, whose last bit remembers what was cut off, so that
// the two roundings are as one.
FASTNORM_FN float round_to_odd(double x) {
    const float nearest = static_cast<float>(x);
    const double back = static_cast<double>(nearest);
    const std::uint32_t bits = bit_copy<std::uint32_t>(nearest);
    if (back == x || x != x || (bits & 1u) != 0) return nearest;
    const bool below = (back < 0 ? -back : back) < (x < 0 ? -x : x);
    return bit_copy<float>(below ? bits + 1u : bits - 1u);
}
FASTNORM_FN void from_float(double x, float& to) { to = static_cast<float>(x); }
FASTNORM_FN void from_float(double x, Half& to) { from_float(round_to_odd(x), to); }
FASTNORM_FN void from_float(double x, BFloat16& to) { from_float(round_to_odd(x), to); }

inline std::int64_t size_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return 4;
        case DType::float64: return 8;
        case DType::float16:
        case DType::bfloat16: return 2;
        default: return 1;
    }
}

inline const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return "float32";
        case DType::float64: return "float64";
        case DType::float16: return "float16";
        case DType::bfloat16: return "bfloat16";
        case DType::uint8: return "uint8";
        default: return "an unsupported dtype";
    }
}

// Calls f with a value of the storage type: the one place where scalar loops (over the parameters
// and the statistics, a few per channel) turn a dtype into a type.
template <class F>
FASTNORM_FN decltype(auto) with_dtype(DType dtype, F&& f) {
    switch (dtype) {
        case DType::float64: return f(double{});
        case DType::float16: return f(Half{});
        case DType::bfloat16: return f(BFloat16{});
        default: return f(float{});
    }
}

}  // namespace fastnorm
