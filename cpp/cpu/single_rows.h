// Reductions of rows that are all of their statistic each: one after the other, in registers. What
// it costs to begin and to end a statistic in memory is more than the sums of a short one. Compiled
// once per instruction set.
#pragma once

#include "cpu/rows_sums.h"
#include "cpu/tiny_rows.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// Those of one block that no map is interleaved with.
template <class T>
FASTNORM_FN bool are_single_rows(const View& view) {
    if (view.traversal == Traversal::features) return view.inner <= rows_block;
    return view.outer == 1 && view.inner * std::int64_t{sizeof(T)} < least_interleaved_bytes;
}

template <class T>
struct SingleRows {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    static constexpr Ahead ahead{Walk<T>::fetch_bytes};
    // Mean and M2 of rows up to here are about means that are found first: in longer ones a guess
    // costs less. A lane has no more than 256 / lanes of their values, so that the sums of all
    // lanes need no double either: twenty roundings on the way to each at most.
    static constexpr std::int64_t most_about_means = 256;
    // About a guess of few digits, numbers on a grid have squares on one: of more than 64 a lane
    // the sums would all be rounded down.
    static constexpr std::int64_t most_of_squares = 2048;

    // Mean and M2. In the time that a row's pivot has to be waited for, the sums of the row before
    // it are made.
    static FASTNORM_FN void moments(const KernelArgs& args, const Tile& tile, double* mean,
                                    double* m2) {
        const std::int64_t n = args.view.inner;
        const std::int64_t rows = tile.stat1 - tile.stat0;
        A pivots[rows_tile_stats] = {};
        double first[rows_tile_stats], second[rows_tile_stats];
        if (are_tiny_rows<A>(args.view)) {
            TinyRows<T>::moments(args, tile, pivots, first, second);
            return finish(args, tile, pivots, first, second, mean, m2);
        }
        const auto row = [&](std::int64_t s) {
            return run_of<T>(args.view, args.x, tile.batch, 0, tile.stat0 + s);
        };
        const A share = A(1) / static_cast<A>(n);
        const bool about_means = args.centred && n <= most_about_means;
        const Ahead ahead_x = about_means ? Ahead() : ahead;  // the mean has fetched it
        for (std::int64_t s = -1; s < rows; ++s) {
            if (args.centred && s + 1 < rows) {
                const T* const next = row(s + 1);
                pivots[s + 1] = about_means ? mean_of(next, n, share) : pivot_of(next, n);
            }
            if (s < 0) continue;
            const T* const x = row(s);
            const V pivot(pivots[s]);
            first[s] = second[s] = 0.0;
            for (std::int64_t from = 0; from < n; from += most_of_squares) {
                const std::int64_t rest = n - from;
                BlockSums<A> sums;
                for_packs<A>(rest < most_of_squares ? rest : most_of_squares,
                             [&](std::int64_t i, auto valid) {
                                 ahead_x.fetch<A>(x + from + i);
                                 for_vectors<A>([&](auto v) {
                                     const V d = load<A>(x + from + i, v, valid) - pivot;
                                     sums.add(v, valid, d, d);
                                 });
                             });
                first[s] += sum_of_row(sums.a, n);
                second[s] += sum_of_row(sums.ab, n);
            }
        }
        finish(args, tile, pivots, first, second, mean, m2);
    }

    // The sums of g and of g * centred(x). What only the map will read, prenorm's dsum, is fetched
    // now, when memory has nothing else to do: dy and x are in the cache already.
    template <ActivationKind kind, template <class> class Maps>
    static FASTNORM_FN void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                                          double* sum_gx) {
        const std::int64_t n = args.view.inner;
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            const Maps<A> maps(args, tile.batch * args.view.stat + tile.stat0 + s);
            Backward<T, kind> backward =
                backward_at<T, kind>(args, tile.batch, 0, tile.stat0 + s, 0);
            backward.ahead_dy = backward.ahead_x = ahead;
            const T* const dsum = run_of<T>(args.view, args.dsum, tile.batch, 0, tile.stat0 + s);
            BlockSums<A> sums;
            backward.each(n, maps.z_from(0),
                          [&](std::int64_t i, auto v, auto valid, const Gradient<V>& at) {
                              if (v == 0 && dsum != nullptr) Ahead::fetch_pack<A>(dsum + i);
                              sums.add(v, valid, maps.weighted(at.g, i, v, valid), at.centred);
                          });
            sum_g[s] = sum_of_row(sums.a, n);
            sum_gx[s] = sum_of_row(sums.ab, n);
            GradientSums<T, kind, Maps>::make_finite(args, tile, s, sum_g, sum_gx);
        }
    }

  private:
    // What the lanes' sums of a row of n values make together.
    static FASTNORM_FN double sum_of_row(const V (&lanes_sums)[vectors<A>], std::int64_t n) {
        return n <= most_about_means ? static_cast<double>(sum_of_vectors<A>(lanes_sums))
                                     : sum_of_lanes<A>(lanes_sums);
    }

    static FASTNORM_FN void finish(const KernelArgs& args, const Tile& tile, const A* pivots,
                                   const double* first, const double* second, double* mean,
                                   double* m2) {
        const double count = static_cast<double>(args.view.inner), share = 1.0 / count;
        const std::int64_t rows = tile.stat1 - tile.stat0;
        double doubtful[rows_tile_stats];
        if (args.centred) {
#pragma omp simd
            for (std::int64_t s = 0; s < rows; ++s) {
                const double origin = static_cast<double>(pivots[s]);
                const Moments m =
                    moments_about(origin, count, first[s] * share, first[s], second[s]);
                const bool good = trustworthy<A>(m, origin, first[s], second[s]);
                mean[s] = m.mean;
                m2[s] = m.m2;
                doubtful[s] = good ? 0.0 : 1.0;
            }
        } else {
#pragma omp simd
            for (std::int64_t s = 0; s < rows; ++s) {
                mean[s] = 0.0;
                m2[s] = second[s];
                doubtful[s] = in_range<A>(count, second[s]) ? 0.0 : 1.0;
            }
        }
        for (std::int64_t s = 0; s < rows; ++s) {
            if (doubtful[s] == 0.0) continue;
            // Zeros above all, which padding is made of.
            if (first[s] == 0.0 && second[s] == 0.0 &&
                Deviations<T>::is_constant(args, tile, tile.stat0 + s, pivots[s])) {
                continue;
            }
            const Moments m = Deviations<T>::recompute(args, tile, tile.stat0 + s, mean[s]);
            mean[s] = m.mean;
            m2[s] = m.m2;
        }
    }

    // From two packs, of the beginning and of the middle: their mean, and the differences of one's
    // elements from the other's. Those of equal values are exact.
    static FASTNORM_FN A pivot_of(const T* x, std::int64_t n) {
        constexpr std::integral_constant<int, lanes<A>> all;
        const A first = to_float(x[0]);
        const T* const middle = x + n / 2 / lanes<A> * lanes<A>;
        V sums[vectors<A>], spreads[vectors<A>];
        for_vectors<A>([&](auto v) {
            const V a = load<A>(x, v, all) - V(first), b = load<A>(middle, v, all) - V(first);
            sums[v] = a + b;
            spreads[v] = abs(a - b);
        });
        constexpr A share = A(0.5) / lanes<A>;
        return pivot_near(first + sum_of_vectors<A>(sums) * share,
                          sum_of_vectors<A>(spreads) * (2 * share));
    }

    // That of n values, of which each has a share of 1 / n; of equal ones it is exact.
    static FASTNORM_FN A mean_of(const T* x, std::int64_t n, A share) {
        const A first = to_float(x[0]);
        V differences[vectors<A>];
        for_packs<A>(n, [&](std::int64_t i, auto valid) {
            ahead.fetch<A>(x + i);
            for_vectors<A>([&](auto v) {
                const V d = load<A>(x + i, v, valid) - V(first);
                differences[v] = differences[v] + keep_valid<A>(d, v, valid);
            });
        });
        const A mean = first + sum_of_vectors<A>(differences) * share;
        return is_finite(mean) ? mean : A(0);
    }
};

// The reductions of the traversals of rows.
template <class T>
FASTNORM_FN void moments_of_rows(const KernelArgs& args, const Tile& tile, double* mean,
                                 double* m2) {
    if (are_single_rows<T>(args.view)) {
        return SingleRows<T>::moments(args, tile, mean, m2);
    }
    Deviations<T> deviations(args, tile);
    reduce<T>(args.view, tile, deviations);
    deviations.finish(mean, m2);
}

template <class T, ActivationKind kind, template <class> class Maps>
FASTNORM_FN void gradient_sums_of_rows(const KernelArgs& args, const Tile& tile, double* sum_g,
                                       double* sum_gx) {
    if (are_single_rows<T>(args.view)) {
        return SingleRows<T>::template gradient_sums<kind, Maps>(args, tile, sum_g, sum_gx);
    }
    GradientSums<T, kind, Maps> sums(args, tile);
    reduce<T>(args.view, tile, sums);
    sums.finish(sum_g, sum_gx);
}

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
