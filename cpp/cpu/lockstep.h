// Several vectors as one value of what core/elementary.h asks for: each operation is done to all of
// them before the next one. A function like an exponential is a chain of operations that wait for
// each other; one chain after the other, the machine does not look far enough ahead to begin the
// next. Compiled once per instruction set.
#pragma once

#include "cpu/lanes.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class V, int n>
struct Lockstep {
    using Scalar = typename V::Scalar;

    struct Mask {
        typename V::Mask of[n];
    };

    V of[n];

    // Element by element: what a loop has set, GCC keeps in memory.
    FASTNORM_FN Lockstep() : Lockstep(std::make_integer_sequence<int, n>()) {}
    FASTNORM_FN explicit Lockstep(Scalar x) {
        unrolled<n>([&](auto i) { of[i] = V(x); });
    }

    template <class Result = Lockstep, class F>
    static FASTNORM_FN Result each(F&& f) {
        Result result;
        unrolled<n>([&](auto i) { result.of[i] = f(i); });
        return result;
    }

    friend FASTNORM_FN Lockstep operator+(const Lockstep& a, const Lockstep& b) {
        return each([&](int i) { return a.of[i] + b.of[i]; });
    }
    friend FASTNORM_FN Lockstep operator-(const Lockstep& a, const Lockstep& b) {
        return each([&](int i) { return a.of[i] - b.of[i]; });
    }
    friend FASTNORM_FN Lockstep operator*(const Lockstep& a, const Lockstep& b) {
        return each([&](int i) { return a.of[i] * b.of[i]; });
    }
    friend FASTNORM_FN Lockstep operator/(const Lockstep& a, const Lockstep& b) {
        return each([&](int i) { return a.of[i] / b.of[i]; });
    }
    friend FASTNORM_FN Lockstep operator-(const Lockstep& a) {
        return each([&](int i) { return -a.of[i]; });
    }
    friend FASTNORM_FN Lockstep fma(const Lockstep& a, const Lockstep& b, const Lockstep& c) {
        return each([&](int i) { return fma(a.of[i], b.of[i], c.of[i]); });
    }
    friend FASTNORM_FN Lockstep abs(const Lockstep& a) {
        return each([&](int i) { return abs(a.of[i]); });
    }
    friend FASTNORM_FN Lockstep low_bits_as_exponent(const Lockstep& a) {
        return each([&](int i) { return low_bits_as_exponent(a.of[i]); });
    }
    friend FASTNORM_FN Lockstep at_least(const Lockstep& a, Scalar lowest) {
        return each([&](int i) { return at_least(a.of[i], lowest); });
    }
    friend FASTNORM_FN Lockstep at_most(const Lockstep& a, Scalar highest) {
        return each([&](int i) { return at_most(a.of[i], highest); });
    }
    friend FASTNORM_FN Lockstep select(const Mask& m, const Lockstep& a, const Lockstep& b) {
        return each([&](int i) { return select(m.of[i], a.of[i], b.of[i]); });
    }
    friend FASTNORM_FN Mask operator<(const Lockstep& a, const Lockstep& b) {
        return each<Mask>([&](int i) { return a.of[i] < b.of[i]; });
    }
    friend FASTNORM_FN Mask operator<=(const Lockstep& a, const Lockstep& b) {
        return each<Mask>([&](int i) { return a.of[i] <= b.of[i]; });
    }
    friend FASTNORM_FN Mask operator>(const Lockstep& a, const Lockstep& b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(const Lockstep& a, const Lockstep& b) { return b <= a; }

  private:
    template <int... i>
    FASTNORM_FN explicit Lockstep(std::integer_sequence<int, i...>) : of{((void)i, V())...} {}
};

// The vectors of a pack.
template <class A>
using Pack = Lockstep<Vec<A>, vectors<A>>;

// Whether an activation's value and slope are taken of full packs at a time.
template <ActivationKind kind, class A, class Valid>
constexpr bool in_lockstep = is_smooth(kind) && Vec<A>::unroll && is_full<Valid>;

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
