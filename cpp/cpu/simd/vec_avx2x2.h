// For tests: the lane counts of AVX-512 (16 floats, 8 doubles) on two AVX2 halves, so that the
// wide kernels run on machines without AVX-512. README.md beside this file says what a Vec is.
#pragma once

#include "cpu/simd/vec_avx2.h"

namespace fastnorm::avx2x2 {

template <class A>
struct Vec {
    using Half = avx2::Vec<A>;
    using Scalar = A;
    static constexpr int half = Half::width;
    static constexpr int width = 2 * half;
    static constexpr bool unroll = true;

    struct Mask {
        typename Half::Mask low, high;
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) {
            return {a.low & b.low, a.high & b.high};
        }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) {
            return {a.low | b.low, a.high | b.high};
        }
        friend FASTNORM_FN Mask operator!(Mask a) { return {!a.low, !a.high}; }
        friend FASTNORM_FN unsigned bits(Mask a) { return bits(a.low) | (bits(a.high) << half); }
    };

    Half low, high;

    FASTNORM_FN Vec() {}
    FASTNORM_FN explicit Vec(A x) : low(x), high(x) {}
    FASTNORM_FN Vec(Half l, Half h) : low(l), high(h) {}

    static FASTNORM_FN int in_low(int n) { return n < half ? n : half; }
    static FASTNORM_FN int in_high(int n) { return n < half ? 0 : n - half; }
    static FASTNORM_FN Mask mask(unsigned bits) {
        return {Half::mask(bits), Half::mask(bits >> half)};
    }

    template <class T>
    static FASTNORM_FN Vec load(const T* p) {
        return {Half::load(p), Half::load(p + half)};
    }
    template <class T>
    static FASTNORM_FN Vec load(const T* p, int n) {
        return {Half::load(p, in_low(n)), Half::load(p + half, in_high(n))};
    }
    template <class T>
    FASTNORM_FN void store(T* p) const {
        low.store(p);
        high.store(p + half);
    }
    template <class T>
    FASTNORM_FN void store(T* p, int n) const {
        low.store(p, in_low(n));
        high.store(p + half, in_high(n));
    }

    template <class T>
    FASTNORM_FN void stream(T* p) const {
        low.stream(p);
        high.stream(p + half);
    }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return {a.low + b.low, a.high + b.high}; }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return {a.low - b.low, a.high - b.high}; }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return {a.low * b.low, a.high * b.high}; }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return {a.low / b.low, a.high / b.high}; }
    friend FASTNORM_FN Vec operator-(Vec a) { return {-a.low, -a.high}; }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) {
        return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
    }
    friend FASTNORM_FN Vec abs(Vec a) { return {abs(a.low), abs(a.high)}; }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return {low_bits_as_exponent(a.low), low_bits_as_exponent(a.high)};
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) { return {a.low < b.low, a.high < b.high}; }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) { return {a.low <= b.low, a.high <= b.high}; }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) {
        return {select(m.low, a.low, b.low), select(m.high, a.high, b.high)};
    }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) {
        return {keep_first(a.low, in_low(n)), keep_first(a.high, in_high(n))};
    }
    friend FASTNORM_FN A sum(Vec a) { return sum(a.low + a.high); }
};

using avx2::stream_alignment;
using avx2::stream_fence;
using avx2::stream_line;

}  // namespace fastnorm::avx2x2
