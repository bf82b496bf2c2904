// Any target: 4 floats or 2 doubles in the compiler's own vectors, multiply-adds rounded twice.
// README.md beside this file says what a Vec is.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/dtypes.h"

namespace fastnorm::baseline {

template <class A>
struct Vectors;
template <>
struct Vectors<float> {
    using Int = std::int32_t;
    typedef float Lanes __attribute__((vector_size(16)));
    typedef Int IntLanes __attribute__((vector_size(16)));
};
template <>
struct Vectors<double> {
    using Int = std::int64_t;
    typedef double Lanes __attribute__((vector_size(16)));
    typedef Int IntLanes __attribute__((vector_size(16)));
};

#if defined(__SSE2__)
// GCC 12 stops with an internal error where it combines its own comparisons of doubles.
FASTNORM_FN __m128 less(__m128 a, __m128 b) { return _mm_cmplt_ps(a, b); }
FASTNORM_FN __m128d less(__m128d a, __m128d b) { return _mm_cmplt_pd(a, b); }
FASTNORM_FN __m128 less_equal(__m128 a, __m128 b) { return _mm_cmple_ps(a, b); }
FASTNORM_FN __m128d less_equal(__m128d a, __m128d b) { return _mm_cmple_pd(a, b); }
#else
template <class Lanes>
FASTNORM_FN auto less(Lanes a, Lanes b) {
    return a < b;
}
template <class Lanes>
FASTNORM_FN auto less_equal(Lanes a, Lanes b) {
    return a <= b;
}
#endif

template <class A>
struct Vec {
    using Scalar = A;
    static constexpr int width = 16 / sizeof(A);
    static constexpr bool unroll = false;  // 8 vectors a pack: four times the code, and to compile
    using Lanes = typename Vectors<A>::Lanes;
    using Int = typename Vectors<A>::Int;
    using IntLanes = typename Vectors<A>::IntLanes;

    struct Mask {
        IntLanes m;  // 0 or -1
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
        friend FASTNORM_FN Mask operator!(Mask a) { return {~a.m}; }
        friend FASTNORM_FN unsigned bits(Mask a) {
            unsigned result = 0;
            for (int i = 0; i < width; ++i) result |= static_cast<unsigned>(a.m[i] & 1) << i;
            return result;
        }
    };

    Lanes v;

    FASTNORM_FN Vec() : v{} {}
    FASTNORM_FN explicit Vec(A x) : v(x - Lanes{}) {}
    FASTNORM_FN Vec(Lanes x) : v(x) {}

    static FASTNORM_FN Mask mask(unsigned bits) {
        IntLanes m = {};
        for (int i = 0; i < width; ++i) m[i] = -static_cast<Int>((bits >> i) & 1u);
        return {m};
    }

    template <class T>
    static FASTNORM_FN Vec load(const T* p) {
        T elements[width];
        std::memcpy(elements, p, sizeof(elements));
        return widen(elements);
    }
    template <class T>
    static FASTNORM_FN Vec load(const T* p, int n) {
        T elements[width] = {};
        std::memcpy(elements, p, static_cast<unsigned>(n) * sizeof(T));
        return widen(elements);
    }
    template <class T>
    FASTNORM_FN void store(T* p) const {
        T elements[width];
        narrow(v, elements);
        std::memcpy(p, elements, sizeof(elements));
    }
    template <class T>
    FASTNORM_FN void store(T* p, int n) const {
        T elements[width];
        narrow(v, elements);
        std::memcpy(p, elements, static_cast<unsigned>(n) * sizeof(T));
    }

    template <class T>
    FASTNORM_FN void stream(T* p) const {
        store(p);
    }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return a.v + b.v; }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return a.v - b.v; }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return a.v * b.v; }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return a.v / b.v; }
    friend FASTNORM_FN Vec operator-(Vec a) { return -a.v; }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
    friend FASTNORM_FN Vec abs(Vec a) {
        return bit_copy<Lanes>(bit_copy<IntLanes>(a.v) & ~bit_copy<IntLanes>(Vec(A(-0.0)).v));
    }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return bit_copy<Lanes>(bit_copy<IntLanes>(a.v) << (sizeof(A) == 4 ? 23 : 52));
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) { return {bit_copy<IntLanes>(less(a.v, b.v))}; }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) {
        return {bit_copy<IntLanes>(less_equal(a.v, b.v))};
    }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    // By bits: GCC 12 fails on the conditional operator here.
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) {
        return bit_copy<Lanes>((m.m & bit_copy<IntLanes>(a.v)) | (~m.m & bit_copy<IntLanes>(b.v)));
    }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) {
        for (int i = n; i < width; ++i) a.v[i] = 0;
        return a;
    }
    friend FASTNORM_FN A sum(Vec a) {
        for (int half = width / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
        }
        return a.v[0];
    }

  private:
    static FASTNORM_FN Vec widen(const A* elements) {
        Lanes lanes;
        std::memcpy(&lanes, elements, sizeof(lanes));
        return lanes;
    }
    static FASTNORM_FN void narrow(Lanes lanes, A* elements) {
        std::memcpy(elements, &lanes, sizeof(lanes));
    }
    // Calls, not inlined: the conversions are long, and a kernel holds dozens of them.
    template <class T>
    static __attribute__((noinline)) Lanes widen(const T* elements) {
        Lanes lanes;
        for (int i = 0; i < width; ++i) lanes[i] = to_float(elements[i]);
        return lanes;
    }
    template <class T>
    static __attribute__((noinline)) void narrow(Lanes lanes, T* elements) {
        for (int i = 0; i < width; ++i) from_float(static_cast<A>(lanes[i]), elements[i]);
    }
};

inline constexpr int stream_alignment = 64;
FASTNORM_FN void stream_line(void* to, const void* from) { std::memcpy(to, from, 64); }
FASTNORM_FN void stream_fence() {}

}  // namespace fastnorm::baseline
