// Tensors of N x C x S values for the tests, in any of the four dtypes and in any layout.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fastnorm/fastnorm.hpp"

// The 16-bit types as a user without a library for them would have them: bits, and a conversion
// through double. to() is used on values that the type has exactly, so it need not round.
struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

inline double value_of(float x) { return x; }
inline double value_of(double x) { return x; }
inline double value_of(Half x) {
    const int exponent = (x.bits >> 10) & 31;
    const int mantissa = x.bits & 1023;
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return (x.bits & 0x8000) != 0 ? -magnitude : magnitude;
}
inline double value_of(BFloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline void set(float& to, double x) { to = static_cast<float>(x); }
inline void set(double& to, double x) { to = x; }
inline void set(Half& to, double x) {
    int exponent = 0;
    const double fraction = std::frexp(std::fabs(x), &exponent);  // in [1/2, 1)
    const int bits =
        x == 0 ? 0 : (exponent + 14) << 10 | (static_cast<int>(fraction * 2048) - 1024);
    to.bits = static_cast<std::uint16_t>(bits | (x < 0 ? 0x8000 : 0));
}
inline void set(BFloat16& to, double x) {
    const auto value = static_cast<float>(x);
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    to.bits = static_cast<std::uint16_t>(bits >> 16);
}

// dtype, and the unit roundoff: half the distance from 1 to the next number.
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
    static constexpr auto dtype = fastnorm::DType::float32;
    static constexpr double roundoff = 0x1p-24;
};
template <>
struct DTypeOf<double> {
    static constexpr auto dtype = fastnorm::DType::float64;
    static constexpr double roundoff = 0x1p-53;
};
template <>
struct DTypeOf<Half> {
    static constexpr auto dtype = fastnorm::DType::float16;
    static constexpr double roundoff = 0x1p-11;
};
template <>
struct DTypeOf<BFloat16> {
    static constexpr auto dtype = fastnorm::DType::bfloat16;
    static constexpr double roundoff = 0x1p-8;
};

// Where element (n, c, s) is, counted in elements from the one at (0, 0, 0).
struct Layout {
    const char* name;
    std::int64_t n, c, s;
};

struct Extents {
    std::int64_t n, c, s;
};

template <class T>
class Tensor {
  public:
    Tensor(const Extents& extents, const Layout& layout) : extents_(extents), layout_(layout) {
        std::int64_t below = 0;
        std::int64_t above = 0;
        for (const std::int64_t reach :
             {layout.n * (extents.n - 1), layout.c * (extents.c - 1), layout.s * (extents.s - 1)}) {
            (reach < 0 ? below : above) += reach;
        }
        origin_ = -below;
        memory_.resize(static_cast<std::size_t>(above - below + 1));
        std::memset(memory_.data(), 0x5a, memory_.size() * sizeof(T));
    }

    T& at(std::int64_t n, std::int64_t c, std::int64_t s) {
        return memory_[static_cast<std::size_t>(origin_ + n * layout_.n + c * layout_.c +
                                                s * layout_.s)];
    }
    double value(std::int64_t n, std::int64_t c, std::int64_t s) { return value_of(at(n, c, s)); }

    fastnorm::TensorView view() {
        constexpr auto size = static_cast<std::int64_t>(sizeof(T));
        fastnorm::TensorView view(&at(0, 0, 0), DTypeOf<T>::dtype,
                                  {extents_.n, extents_.c, extents_.s});
        view.strides[0] = layout_.n * size;
        view.strides[1] = layout_.c * size;
        view.strides[2] = layout_.s * size;
        return view;
    }

    // The memory between the elements is as it was.
    bool padding_is_untouched() {
        std::vector<T> expected(memory_.size());
        std::memset(expected.data(), 0x5a, expected.size() * sizeof(T));
        std::swap(expected, memory_);
        for (std::int64_t n = 0; n < extents_.n; ++n)
            for (std::int64_t c = 0; c < extents_.c; ++c)
                for (std::int64_t s = 0; s < extents_.s; ++s) {
                    T& element = at(n, c, s);
                    element = expected[static_cast<std::size_t>(&element - memory_.data())];
                }
        return same_bits(expected);
    }

    bool same_bits(const Tensor& other) const { return same_bits(other.memory_); }

  private:
    bool same_bits(const std::vector<T>& other) const {
        return memory_.size() == other.size() &&
               std::memcmp(memory_.data(), other.data(), other.size() * sizeof(T)) == 0;
    }

    Extents extents_;
    Layout layout_;
    std::int64_t origin_ = 0;
    std::vector<T> memory_;
};
