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

    // Mean and M2.
    static FASTNORM_FN void moments(const KernelArgs& args, const Tile& tile, double* mean,
                                    double* m2) {
        const std::int64_t rows = tile.stat1 - tile.stat0;
        A pivots[rows_tile_stats] = {};
        double first[rows_tile_stats], second[rows_tile_stats];
        if (are_tiny_rows<A>(args.view)) {
            TinyRows<T>::moments(args, tile, pivots, first, second);
            return finish(args, tile, pivots, first, second, mean, m2);
        }
        const std::int64_t n = args.view.inner;
        const bool centred = args.centred, about_means = centred && n <= most_about_means;
        const SideBySide<const T> x(args.view, args.x, tile);
        if (about_means) {
            for_several(SeveralRows<A>(), rows, [&](auto count, std::int64_t s) {
                set_means(count, x.from(s), n, pivots + s);
            });
        } else if (centred) {
            for (std::int64_t s = 0; s < rows; ++s) pivots[s] = pivot_of(x.row(s), n);
        }
        for_several(SeveralRows<A>(), rows, [&](auto count, std::int64_t s) {
            add_up(count, x.from(s), n, !about_means, pivots + s, first + s, second + s);
        });
        finish(args, tile, pivots, first, second, mean, m2);
    }

    // The sums of g and of g * centred(x). What only the map will read, prenorm's dsum, is fetched
    // now, when memory has nothing else to do: dy and x are in the cache already.
    template <ActivationKind kind, template <class> class Maps>
    static FASTNORM_FN void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                                          double* sum_gx) {
        const std::int64_t rows = tile.stat1 - tile.stat0;
        if constexpr (kind == ActivationKind::identity) {
            for_several(FewRows<A>(), rows, [&](auto count, std::int64_t s) {
                add_up_products<Maps>(count, args, tile, s, sum_g + s, sum_gx + s);
            });
        } else {
            for (std::int64_t s = 0; s < rows; ++s) {
                add_up_gradients<kind, Maps>(args, tile, s, sum_g[s], sum_gx[s]);
            }
        }
        for (std::int64_t s = 0; s < rows; ++s) {
            GradientSums<T, kind, Maps>::make_finite(args, tile, s, sum_g, sum_gx);
        }
    }

  private:
    template <ActivationKind kind, template <class> class Maps>
    static FASTNORM_FN void add_up_gradients(const KernelArgs& args, const Tile& tile,
                                             std::int64_t s, double& sum_g, double& sum_gx) {
        const std::int64_t n = args.view.inner;
        const Maps<A> maps(args, tile.batch * args.view.stat + tile.stat0 + s);
        Backward<T, kind> backward = backward_at<T, kind>(args, tile.batch, 0, tile.stat0 + s, 0);
        backward.ahead_dy = backward.ahead_x = ahead;
        const T* const dsum = run_of<T>(args.view, args.dsum, tile.batch, 0, tile.stat0 + s);
        BlockSums<A> sums;
        backward.each(n, maps.z_from(0),
                      [&](std::int64_t i, auto v, auto valid, const Gradient<V>& at) {
                          if (v == 0 && dsum != nullptr) Ahead::fetch_pack<A>(dsum + i);
                          sums.add(v, valid, maps.weighted(at.g, i, v, valid), at.centred);
                      });
        sum_g = sum_of_row(n, sums.a);
        sum_gx = sum_of_row(n, sums.ab);
    }

    // The same without an activation, of several rows from s on.
    template <template <class> class Maps, int rows>
    static FASTNORM_FN void add_up_products(RowCount<rows>, const KernelArgs& args,
                                            const Tile& tile, std::int64_t s, double* sum_g,
                                            double* sum_gx) {
        using Each = Lockstep<V, rows>;
        const std::int64_t n = args.view.inner;
        const auto map =
            normalize_maps<A, rows>(args, tile.batch * args.view.stat + tile.stat0 + s);
        const Maps<A> maps(args, 0);  // for the weights
        const auto dy = SideBySide<const T>(args.view, args.dy, tile).from(s);
        const auto x = SideBySide<const T>(args.view, args.x, tile).from(s);
        const auto dsum = SideBySide<const T>(args.view, args.dsum, tile).from(s);
        const Ahead ahead_dy = ahead_of(RowCount<rows>(), dy);
        const Ahead ahead_x = ahead_of(RowCount<rows>(), x);
        BlockSums<A, Each> sums;
        for_packs<A>(n, [&](std::int64_t i, auto valid) {
            for (int r = 0; r < rows; ++r) {
                ahead_dy.fetch<A>(dy.row(r) + i);
                ahead_x.fetch<A>(x.row(r) + i);
                if (dsum.first != nullptr) Ahead::fetch_pack<A>(dsum.row(r) + i);
            }
            for_vectors<A>([&](auto v) {
                const Each g = Each::each([&](auto r) {
                    return maps.weighted(load<A>(dy.row(r) + i, v, valid), i, v, valid);
                });
                const Each centred = map.centred(
                    Each::each([&](auto r) { return load<A>(x.row(r) + i, v, valid); }));
                sums.add(v, valid, g, centred);
            });
        });
        sums_of_rows(n, sums.a, sum_g);
        sums_of_rows(n, sums.ab, sum_gx);
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

    // Where a reduction of rows is later: in the rows that come next, if it takes several at a
    // time.
    template <int rows>
    static FASTNORM_FN Ahead ahead_of(RowCount<rows>, const SideBySide<const T>& x) {
        const std::int64_t next = rows * x.stride;
        return rows == 1 || next < ahead.distance ? ahead : Ahead{next};
    }

    // The means of rows of n values; of equal ones it is exact.
    template <int rows>
    static FASTNORM_FN void set_means(RowCount<rows> count, const SideBySide<const T>& x,
                                      std::int64_t n, A* means) {
        using Each = Lockstep<V, rows>;
        const Ahead ahead_x = ahead_of(count, x);
        const Each firsts = Each::each([&](auto r) { return V(to_float(x.row(r)[0])); });
        Each differences[vectors<A>];
        for_packs<A>(n, [&](std::int64_t i, auto valid) {
            for (int r = 0; r < rows; ++r) ahead_x.fetch<A>(x.row(r) + i);
            for_vectors<A>([&](auto v) {
                const Each at = Each::each([&](auto r) { return load<A>(x.row(r) + i, v, valid); });
                differences[v] = differences[v] + keep_valid<A>(at - firsts, v, valid);
            });
        });
        A sums[rows];
        sums_of_vectors<A>(differences, sums);
        const A share = A(1) / static_cast<A>(n);
        for (int r = 0; r < rows; ++r) {
            const A mean = to_float(x.row(r)[0]) + sums[r] * share;
            means[r] = is_finite(mean) ? mean : A(0);
        }
    }

    // The sums of n differences from pivots and of their squares.
    template <int rows>
    static FASTNORM_FN void add_up(RowCount<rows> count, const SideBySide<const T>& x,
                                   std::int64_t n, bool from_memory, const A* pivots, double* first,
                                   double* second) {
        using Each = Lockstep<V, rows>;
        const Ahead ahead_x = from_memory ? ahead_of(count, x) : Ahead();
        const Each pivot = Each::each([&](auto r) { return V(pivots[r]); });
        unrolled<rows>([&](auto r) { first[r] = second[r] = 0.0; });
        for (std::int64_t from = 0; from < n; from += most_of_squares) {
            const std::int64_t rest = n - from;
            BlockSums<A, Each> block;
            for_packs<A>(rest < most_of_squares ? rest : most_of_squares, [&](std::int64_t i,
                                                                              auto valid) {
                for (int r = 0; r < rows; ++r) ahead_x.fetch<A>(x.row(r) + from + i);
                for_vectors<A>([&](auto v) {
                    const Each at =
                        Each::each([&](auto r) { return load<A>(x.row(r) + from + i, v, valid); });
                    const Each d = at - pivot;
                    block.add(v, valid, d, d);
                });
            });
            double sums[rows], square_sums[rows];
            sums_of_rows(n, block.a, sums);
            sums_of_rows(n, block.ab, square_sums);
            unrolled<rows>([&](auto r) {
                first[r] += sums[r];
                second[r] += square_sums[r];
            });
        }
    }

    // What the lanes' sums of a row of n values make together.
    static FASTNORM_FN double sum_of_row(std::int64_t n, const V (&of_lanes)[vectors<A>]) {
        return n <= most_about_means ? static_cast<double>(sum_of_vectors<A>(of_lanes))
                                     : sum_of_lanes<A>(of_lanes);
    }
    // The same of several rows.
    template <int rows>
    static FASTNORM_FN void sums_of_rows(std::int64_t n,
                                         const Lockstep<V, rows> (&of_lanes)[vectors<A>],
                                         double* sums) {
        if (n <= most_about_means) {
            A narrow[rows];
            sums_of_vectors<A>(of_lanes, narrow);
            for (int r = 0; r < rows; ++r) sums[r] = static_cast<double>(narrow[r]);
        } else {
            unrolled<rows>([&](auto r) {
                V own[vectors<A>];
                for_vectors<A>([&](auto v) { own[v] = of_lanes[v].of[r]; });
                sums[r] = sum_of_row(n, own);
            });
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
