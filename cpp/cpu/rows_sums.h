// What the reductions of the rows traversal add up. Compiled once per instruction set.
#pragma once

#include "cpu/lane_sums.h"
#include "cpu/rows_layout.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// A reduction of a tile: at() says where the walk is, add() takes elements [from, to) of a row, and
// sums[] has those of each statistic.

// Mean and M2, from the sums of d = x - pivot and of d^2.
template <class T>
struct Deviations {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    const KernelArgs& args;
    const Tile& tile;
    Ahead ahead_x = {};
    A pivots[rows_tile_stats];
    LaneSums<A> sums[rows_tile_stats];

    FASTNORM_FN Deviations(const KernelArgs& a, const Tile& t) : args(a), tile(t) {
        if (args.centred) {
            guess_pivots(args, tile, pivots);
        } else {
            for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) pivots[s] = A(0);
        }
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) sums[s].clear();
    }
    // Of a tile of one statistic.
    FASTNORM_FN Deviations(const KernelArgs& a, const Tile& t, A pivot) : args(a), tile(t) {
        pivots[0] = pivot;
        sums[0].clear();
    }

    FASTNORM_FN void at(const Walk<T>& walk) { ahead_x = walk.in(args.x); }

    FASTNORM_FN void add(std::int64_t o, std::int64_t s, std::int64_t from, std::int64_t to) {
        const T* const x = run_of<T>(args.view, args.x, tile.batch, o, s) + from;
        const V pivot(pivots[s - tile.stat0]);
        const Ahead ahead = ahead_x;
        sums[s - tile.stat0].add([&](auto&& add) {
            for_packs<A>(to - from, [&](std::int64_t i, auto valid) {
                ahead.fetch<A>(x + i);
                for_vectors<A>([&](auto v) {
                    const V d = load<A>(x + i, v, valid) - pivot;
                    add(v, valid, d, d);
                });
            });
        });
    }

    FASTNORM_FN void finish(double* mean, double* m2) const {
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            bool good;
            Moments m = moments(s, good);
            if (!good) m = recompute(args, tile, tile.stat0 + s, m.mean);
            mean[s] = m.mean;
            m2[s] = m.m2;
        }
    }

    // Off the hot path: a tile whose pivot was poor, or whose numbers are constant, tiny or huge.
    // Once more about its own mean, and in double where that does not help.
    static __attribute__((noinline)) Moments recompute(const KernelArgs& args, const Tile& tile,
                                                       std::int64_t s, double mean);

    // Whether nothing in the statistic's rows is more or less than a value. (NaN is neither.)
    static FASTNORM_FN bool is_constant(const KernelArgs& args, const Tile& tile, std::int64_t s,
                                        A of) {
        const V value(of);
        unsigned differing = 0;
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            const T* const x = run_of<T>(args.view, args.x, tile.batch, o, s) + tile.inner0;
            for_packs<A>(tile.inner1 - tile.inner0, [&](std::int64_t i, auto valid) {
                for_vectors<A>([&](auto v) {
                    const V at = load<A>(x + i, v, valid);
                    unsigned found = bits((at < value) | (value < at));
                    if constexpr (!is_full<decltype(valid)>) {
                        found &= (1u << in_vector<A>(valid, v)) - 1u;
                    }
                    differing |= found;
                });
            });
        }
        return differing == 0;
    }

  private:
    // For each statistic the mean of its samples; that of equal values is exact.
    static FASTNORM_FN void guess_pivots(const KernelArgs& args, const Tile& tile, A* pivots) {
        constexpr int samples = pivot_samples;
        const char* at[samples];
        for (int k = 0; k < samples; ++k) at[k] = sample(args, tile, k);
        const A share = A(1) / static_cast<A>(samples);
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            const auto value = [&](int k) {
                return to_float(*reinterpret_cast<const T*>(at[k] + s * args.x.stat_stride));
            };
            const A first = value(0);
            A sum = A(0), spread = A(0);
            unrolled<samples - 1>([&](auto k) {
                const A d = value(k + 1) - first;
                sum += d;
                spread += d < A(0) ? -d : d;
            });
            pivots[s] = pivot_near(first + sum * share, spread * share);
        }
    }

    FASTNORM_FN double count() const {
        return static_cast<double>((tile.outer1 - tile.outer0) * (tile.inner1 - tile.inner0));
    }

    FASTNORM_FN Moments moments(std::int64_t s, bool& good) const {
        const double sum = sum_of_lanes<A>(sums[s].total_a);
        const double square_sum = sum_of_lanes<A>(sums[s].total_ab);
        if (!args.centred) {
            const Moments m{count(), 0.0, square_sum};
            good = in_range<A>(m.count, square_sum);
            return m;
        }
        const double origin = static_cast<double>(pivots[s]);
        const Moments m = moments_about(origin, count(), sum / count(), sum, square_sum);
        good = trustworthy<A>(m, origin, sum, square_sum);
        return m;
    }

    FASTNORM_FN const T* row(std::int64_t o, std::int64_t s) const {
        return run_of<T>(args.view, args.x, tile.batch, o, s) + tile.inner0;
    }

    // Sample k of the tile's first statistic: values spread over the tile.
    FASTNORM_FN static const char* sample(const KernelArgs& args, const Tile& tile, int k) {
        const std::int64_t rows = tile.outer1 - tile.outer0;
        const std::int64_t length = tile.inner1 - tile.inner0;
        const std::int64_t o = tile.outer0 + k * rows / pivot_samples;
        const std::int64_t i = tile.inner0 + k * 3 % pivot_samples * length / pivot_samples;
        return reinterpret_cast<const char*>(
            run_of<T>(args.view, args.x, tile.batch, o, tile.stat0) + i);
    }
};

// The sums of g and of g * centred(x).
template <class T, ActivationKind kind, template <class> class Maps>
struct GradientSums {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    const KernelArgs& args;
    const Tile& tile;
    Ahead ahead_dy = {}, ahead_x = {};
    LaneSums<A> sums[rows_tile_stats];

    FASTNORM_FN GradientSums(const KernelArgs& a, const Tile& t) : args(a), tile(t) {
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) sums[s].clear();
    }

    FASTNORM_FN void at(const Walk<T>& walk) {
        ahead_dy = walk.in(args.dy);
        ahead_x = walk.in(args.x);
    }

    FASTNORM_FN void add(std::int64_t o, std::int64_t s, std::int64_t from, std::int64_t to) {
        const Maps<A> maps(args, tile.batch * args.view.stat + s);
        Backward<T, kind> backward = backward_at<T, kind>(args, tile.batch, o, s, from);
        backward.ahead_dy = ahead_dy;
        backward.ahead_x = ahead_x;
        // For the map, as in SingleRows.
        const T* const dsum = run_of<T>(args.view, args.dsum, tile.batch, o, s);
        sums[s - tile.stat0].add([&](auto&& add) {
            backward.each(to - from, maps.z_from(from),
                          [&](std::int64_t i, auto v, auto valid, const Gradient<V>& at) {
                              if (v == 0 && dsum != nullptr) Ahead::fetch_pack<A>(dsum + from + i);
                              add(v, valid, maps.weighted(at.g, from + i, v, valid), at.centred);
                          });
        });
    }

    FASTNORM_FN void finish(double* sum_g, double* sum_gx) const {
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            sum_g[s] = sum_of_lanes<A>(sums[s].total_a);
            sum_gx[s] = sum_of_lanes<A>(sums[s].total_ab);
            make_finite(args, tile, s, sum_g, sum_gx);
        }
    }

    // Those of the tile's statistic s once more, if they are not finite.
    static FASTNORM_FN void make_finite(const KernelArgs& args, const Tile& tile, std::int64_t s,
                                        double* sum_g, double* sum_gx) {
        if (is_finite(sum_g[s]) && is_finite(sum_gx[s])) return;
        exact(args, tile, tile.stat0 + s, sum_g[s], sum_gx[s]);
    }

  private:
    // Off the hot path: a tile whose sums left the range of A, or that has an infinity or NaN.
    // Once more in double, from x itself: an x far from a mean that is not its own may have a
    // centred(x) beyond the range.
    static __attribute__((noinline)) void exact(const KernelArgs& args, const Tile& tile,
                                                std::int64_t s, double& sum_g, double& sum_gx) {
        alignas(64) A g[lanes<A>];
        const std::int64_t index = tile.batch * args.view.stat + s;
        const Maps<A> maps(args, index);
        const ExactCentre<A> centre(args, index);
        sum_g = sum_gx = 0.0;
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            const T* const x = run_of<T>(args.view, args.x, tile.batch, o, s);
            for (std::int64_t i = tile.inner0; i < tile.inner1; i += lanes<A>) {
                const std::int64_t rest = tile.inner1 - i;
                const std::int64_t count = rest < lanes<A> ? rest : lanes<A>;
                backward_at<T, kind>(args, tile.batch, o, s, i)
                    .each(count, maps.z_from(i),
                          [&](std::int64_t k, auto v, auto valid, const Gradient<V>& at) {
                              maps.weighted(at.g, i + k, v, valid).store(g + v * V::width);
                          });
                for (std::int64_t k = 0; k < count; ++k) {
                    sum_g += static_cast<double>(g[k]);
                    sum_gx += centre.product(g[k], to_float(x[i + k]));
                }
            }
        }
    }
};

template <class T>
Moments Deviations<T>::recompute(const KernelArgs& args, const Tile& tile, std::int64_t s,
                                 double mean) {
    Tile rows = tile;
    rows.stat0 = s;
    rows.stat1 = s + 1;
    Deviations about(args, rows, pivot_near(static_cast<A>(mean), A(0)));
    const auto each = [&](auto&& use) {
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            const T* const x = about.row(o, s);
            for (std::int64_t i = 0; i < tile.inner1 - tile.inner0; ++i) use(to_float(x[i]));
        }
    };
    if (!args.centred) {
        const double count = about.count();
        return is_constant(args, tile, s, A(0)) ? Moments{count, 0.0, 0.0}
                                                : exact_squares<A>(count, each);
    }
    reduce<T>(args.view, rows, about);
    bool good;
    const Moments m = about.moments(0, good);
    if (good || is_constant(args, tile, s, about.pivots[0])) return m;
    return exact_moments(m.count, to_float(about.row(tile.outer0, s)[0]), each);
}

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
