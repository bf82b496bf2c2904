// What reductions are made of: sums of lanes, pivots, and exact sums for the rare numbers that
// leave the accumulator's range. Compiled once per instruction set.
#pragma once

#include "cpu/lockstep.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// The sum of n numbers, as a tree of fixed shape: of halves, of which a vector makes its own.
template <int n, class S>
FASTNORM_FN S sum_of(const S* x) {
    using V = Vec<S>;
    if constexpr (n == V::width) {
        return sum(V::load(x));
    } else {
        alignas(64) S halves[n / 2];
        for (int i = 0; i < n / 2; i += V::width) {
            (V::load(x + i) + V::load(x + i + n / 2)).store(halves + i);
        }
        return sum_of<n / 2>(halves);
    }
}
// That of all lanes.
template <class A>
FASTNORM_FN double sum_of_lanes(const double* x) {
    return sum_of<lanes<A>>(x);
}
template <class A>
FASTNORM_FN double sum_of_lanes(const Vec<A> (&x)[vectors<A>]) {
    alignas(64) A block[lanes<A>];
    alignas(64) double sums[lanes<A> / 2];
    for_vectors<A>([&](auto v) { x[v].store(block + v * Vec<A>::width); });
#pragma omp simd
    for (int i = 0; i < lanes<A> / 2; ++i) {
        sums[i] = static_cast<double>(block[i]) + static_cast<double>(block[i + lanes<A> / 2]);
    }
    return sum_of<lanes<A> / 2>(sums);
}

template <class V>
concept HasSums = requires(V v, typename V::Scalar* to) { V::sums(v, v, v, v, to); };

// The same of vectors in registers, all of it in A.
template <class A, int n>
FASTNORM_FN A sum_of_vectors(const Vec<A> (&x)[n]) {
    if constexpr (n == 1) {
        return sum(x[0]);
    } else {
        Vec<A> halves[n / 2];
        unrolled<n / 2>([&](auto i) { halves[i] = x[i] + x[i + n / 2]; });
        return sum_of_vectors<A>(halves);
    }
}

// The same of several at a time.
template <class A, int rows, int n>
FASTNORM_FN void sums_of_vectors(const Lockstep<Vec<A>, rows> (&x)[n], A (&sums)[rows]) {
    if constexpr (n > 1) {
        Lockstep<Vec<A>, rows> halves[n / 2];
        unrolled<n / 2>([&](auto i) { halves[i] = x[i] + x[i + n / 2]; });
        sums_of_vectors<A>(halves, sums);
    } else if constexpr (rows == 4 && HasSums<Vec<A>>) {
        Vec<A>::sums(x[0].of[0], x[0].of[1], x[0].of[2], x[0].of[3], sums);
    } else {
        unrolled<rows>([&](auto r) { sums[r] = sum(x[0].of[r]); });
    }
}

// What lies beside a pack counts for nothing: it may be infinite.
template <class A, class Valid>
FASTNORM_FN Vec<A> keep_valid(Vec<A> x, int v, Valid valid) {
    if constexpr (is_full<Valid>) {
        return x;
    } else {
        return keep_first(x, in_vector<A>(valid, v));
    }
}

template <class A, class Valid, int rows>
FASTNORM_FN Lockstep<Vec<A>, rows> keep_valid(const Lockstep<Vec<A>, rows>& x, int v, Valid valid) {
    return Lockstep<Vec<A>, rows>::each([&](auto r) { return keep_valid<A>(x.of[r], v, valid); });
}

// Two sums in each lane of a block, of a and of a * b, in registers; of several rows, if V is a
// Lockstep.
template <class A, class V = Vec<A>>
struct BlockSums {
    V a[vectors<A>], ab[vectors<A>];

    template <class Valid>
    FASTNORM_FN void add(int v, Valid valid, V x, V y) {
        x = keep_valid<A>(x, v, valid);
        y = keep_valid<A>(y, v, valid);
        a[v] = a[v] + x;
        ab[v] = fma(x, y, ab[v]);
    }
};

// The same in memory: in A over a block, in double over a tile.
template <class A>
struct LaneSums {
    using V = Vec<A>;
    alignas(64) A block_a[lanes<A>];
    alignas(64) A block_ab[lanes<A>];
    alignas(64) double total_a[lanes<A>];
    alignas(64) double total_ab[lanes<A>];

    // By vectors: of a loop over elements compilers make a call or an instruction that is slow to
    // start.
    FASTNORM_FN void clear() {
        for (int i = 0; i < lanes<A>; i += V::width) {
            V().store(block_a + i);
            V().store(block_ab + i);
        }
        for (int i = 0; i < lanes<A>; i += Vec<double>::width) {
            Vec<double>().store(total_a + i);
            Vec<double>().store(total_ab + i);
        }
    }

    // Calls each(add), which calls add(v, valid, a, b) for vectors of packs.
    template <class Each>
    FASTNORM_FN void add(Each&& each) {
        BlockSums<A> sums;
        for_vectors<A>([&](auto v) {
            sums.a[v] = V::load(block_a + v * V::width);
            sums.ab[v] = V::load(block_ab + v * V::width);
        });
        each([&](auto v, auto valid, V a, V b) { sums.add(v, valid, a, b); });
        for_vectors<A>([&](auto v) {
            sums.a[v].store(block_a + v * V::width);
            sums.ab[v].store(block_ab + v * V::width);
        });
    }

    // Ends a block. Each block's sums are rounded on their own, whatever came before.
    FASTNORM_FN void fold() {
        for (int i = 0; i < lanes<A>; ++i) {
            total_a[i] += static_cast<double>(block_a[i]);
            total_ab[i] += static_cast<double>(block_ab[i]);
            block_a[i] = block_ab[i] = A(0);
        }
    }
};

// g * centred(x) in double, of the coefficients at an index: prescaled at the end, so that an
// infinity arises only where the product is one.
template <class A>
struct ExactCentre {
    double mean, prescale;

    FASTNORM_FN ExactCentre(const KernelArgs& args, std::int64_t index) {
        const auto get = [&](Coefficient which) {
            return static_cast<double>(coefficient<A>(args, which)[index]);
        };
        prescale = get(Coefficient::prescale);
        mean = (get(Coefficient::mean_hi) + get(Coefficient::mean_lo)) / prescale;
    }
    FASTNORM_FN double product(A g, A x) const {
        return static_cast<double>(g) * (static_cast<double>(x) - mean) * prescale;
    }
};

// How many values of a statistic are looked at for a guess of its mean, spread over a tile.
constexpr int pivot_samples = 8;

// A pivot near a mean: any number will do but infinity and NaN (those belong to the sums), so one
// of few digits, a multiple of about an eighth of the values' spread. Values on a grid, as integers
// and the 16-bit types are, then differ from it by numbers of few digits, whose sums hardly round;
// with all the mean's digits in every difference they would all round to one side.
template <class A>
FASTNORM_FN Vec<A> pivot_near(Vec<A> mean, Vec<A> spread) {
    const Vec<A> magic = spread * Vec<A>(sizeof(A) == 4 ? A(0x1p20) : A(0x1p49));
    const Vec<A> pivot = (mean + magic) - magic;
    return select(pivot - pivot <= Vec<A>(), pivot, Vec<A>());
}
template <class A>
FASTNORM_FN A pivot_near(A mean, A spread) {
    const A magic = spread * (sizeof(A) == 4 ? A(0x1p20) : A(0x1p49));
    const A pivot = (mean + magic) - magic;
    return is_finite(pivot) ? pivot : A(0);
}

// The moments of count values in double, in two passes: for the rare block whose squares leave
// float's range. each(f) calls f with each value; first is one of them.
template <class A, class Each>
FASTNORM_FN Moments exact_moments(double count, A first, Each&& each) {
    const double origin = static_cast<double>(first);
    double sum = 0;
    each([&](A x) { sum += static_cast<double>(x) - origin; });
    const double mean = origin + sum / count;
    double m2 = 0;
    each([&](A x) {
        const double d = static_cast<double>(x) - mean;
        m2 += d * d;
    });
    return {count, mean, m2};
}

// The same about 0.
template <class A, class Each>
FASTNORM_FN Moments exact_squares(double count, Each&& each) {
    double squares = 0;
    each([&](A x) { squares += static_cast<double>(x) * static_cast<double>(x); });
    return {count, 0.0, squares};
}

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
