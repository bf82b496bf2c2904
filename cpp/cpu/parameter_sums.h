// What the maps of backward add up for the gradients of weights and biases that belong to the
// elements of rows. Compiled once per instruction set.
#pragma once

#include "cpu/spans.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// The sums over rows of g and of g * (x - mean) * rstd, of some elements of inner: over a tile's
// rows in A, which are few, and over tiles in double.
template <class A>
class ParameterSums {
  public:
    static constexpr std::int64_t most = 1024;  // elements
    using V = Vec<A>;

    // head: the element at which the whole packs of a row of results begin.
    FASTNORM_FN ParameterSums(std::int64_t count, std::int64_t head)
        : shift_((lanes<A> - head % lanes<A>) % lanes<A>) {
        for (std::int64_t i = 0; i < shift_ + count; i += lanes<A>) {
            for_vectors<A>([&](auto v) {
                V().store(g_ + i + v * V::width);
                V().store(gx_ + i + v * V::width);
            });
        }
    }

    // Those from an element on.
    class From {
      public:
        FASTNORM_FN From(ParameterSums& sums, std::int64_t i)
            : g_(sums.g_ + sums.shift_ + i), gx_(sums.gx_ + sums.shift_ + i) {}

        // Vector v of the pack at i, of rows one after the other. normalized: (x - mean) * rstd;
        // WantsG: a constant, whether sums of g are made.
        template <class WantsG, class Valid, int rows>
        FASTNORM_FN void add(WantsG, std::int64_t i, int v, Valid valid, const V (&g)[rows],
                             const V (&normalized)[rows]) {
            if constexpr (WantsG::value) {
                V sum = load<A>(g_ + i, v, valid);
                unrolled<rows>([&](auto r) { sum = sum + g[r]; });
                store<A>(g_ + i, v, sum, valid);
            }
            V sum = load<A>(gx_ + i, v, valid);
            unrolled<rows>([&](auto r) { sum = fma(g[r], normalized[r], sum); });
            store<A>(gx_ + i, v, sum, valid);
        }

      private:
        A *g_, *gx_;
    };

    // To g and gx, which nobody may want: null. For long rows the doubles are as many bytes as what
    // is added up. exact(i, g, gx) gives in double what left A's range.
    template <class Exact>
    FASTNORM_FN void add_to(double* g, double* gx, std::int64_t count, Exact&& exact) const {
        const A* const own_g = g_ + shift_;
        const A* const own_gx = gx_ + shift_;
        if ((g == nullptr || all_finite(g_, count)) && (gx == nullptr || all_finite(gx_, count))) {
            if (g != nullptr) add(own_g, count, g);
            if (gx != nullptr) add(own_gx, count, gx);
            return;
        }
        for (std::int64_t i = 0; i < count; ++i) {
            double sum_g = g == nullptr ? 0.0 : static_cast<double>(own_g[i]);
            double sum_gx = gx == nullptr ? 0.0 : static_cast<double>(own_gx[i]);
            if (!is_finite(sum_g) || !is_finite(sum_gx)) {
                double exact_g, exact_gx;
                exact(i, exact_g, exact_gx);
                if (!is_finite(sum_g)) sum_g = exact_g;  // each for itself: one may be unwanted
                if (!is_finite(sum_gx)) sum_gx = exact_gx;
            }
            if (g != nullptr) g[i] += sum_g;
            if (gx != nullptr) gx[i] += sum_gx;
        }
    }

  private:
    static FASTNORM_FN void add(const A* sums, std::int64_t count, double* to) {
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) to[i] += static_cast<double>(sums[i]);
    }

    FASTNORM_FN bool all_finite(const A* sums, std::int64_t count) const {
        V differences;  // of each sum from itself
        for (std::int64_t i = 0; i < shift_ + count; i += V::width) {
            const V sum = V::load(sums + i);
            differences = differences + (sum - sum);
        }
        return bits(differences <= V()) == bits(V() <= V());
    }

    // Not a multiple of 4 KiB apart: a load would wait for the other array's store.
    alignas(64) A g_[most + 2 * lanes<A>];
    alignas(64) A gx_[most + 2 * lanes<A>];
    std::int64_t shift_;
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
