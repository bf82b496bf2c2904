// The features traversal: rows with a statistic each, whose weights and biases belong to the
// elements of inner. Backward adds up their gradients over the rows of a tile while it maps these.
// Compiled once per instruction set.
#pragma once

#include "cpu/rows.h"

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

    // Vector v of the pack at i. unit: what turns centred(x) into (x - mean) * rstd.
    template <class Valid>
    FASTNORM_FN void add(std::int64_t i, int v, Valid valid, const Gradient<V>& of, V unit) {
        A* const g = g_ + shift_ + i;
        A* const gx = gx_ + shift_ + i;
        store<A>(g, v, load<A>(g, v, valid) + of.g, valid);
        store<A>(gx, v, fma(of.g, of.centred * unit, load<A>(gx, v, valid)), valid);
    }

    // exact(i, g, gx) gives in double what left A's range.
    template <class Exact>
    FASTNORM_FN void add_to(double* g, double* gx, std::int64_t count, Exact&& exact) const {
        const A* const own_g = g_ + shift_;
        const A* const own_gx = gx_ + shift_;
        if (all_finite(count)) {
#pragma omp simd
            for (std::int64_t i = 0; i < count; ++i) g[i] += static_cast<double>(own_g[i]);
#pragma omp simd
            for (std::int64_t i = 0; i < count; ++i) gx[i] += static_cast<double>(own_gx[i]);
            return;
        }
        for (std::int64_t i = 0; i < count; ++i) {
            double sum_g = static_cast<double>(own_g[i]);
            double sum_gx = static_cast<double>(own_gx[i]);
            if (!is_finite(sum_g) || !is_finite(sum_gx)) exact(i, sum_g, sum_gx);
            g[i] += sum_g;
            gx[i] += sum_gx;
        }
    }

  private:
    FASTNORM_FN bool all_finite(std::int64_t count) const {
        V differences;  // of each sum from itself
        for (std::int64_t i = 0; i < shift_ + count; i += V::width) {
            const V g = V::load(g_ + i), gx = V::load(gx_ + i);
            differences = differences + ((g - g) + (gx - gx));
        }
        return bits(differences <= V()) == bits(V() <= V());
    }

    // Not a multiple of 4 KiB apart: a load would wait for the other array's store.
    alignas(64) A g_[most + 2 * lanes<A>];
    alignas(64) A gx_[most + 2 * lanes<A>];
    std::int64_t shift_;
};

// A row's dx, from its statistic and from the elements' weights.
template <class A>
struct WeightedGradientMap {
    using V = Vec<A>;
    const GradientMap<V>& row;
    V weight;

    FASTNORM_FN V operator()(V g, V centred) const { return row(g * weight, centred); }
    FASTNORM_FN V of_frozen(V g) const { return row.of_frozen(g * weight); }
};

template <class T, ActivationKind kind>
struct Features {
    using A = accumulator_t<T>;
    using V = Vec<A>;
    using RowMap = RowsMap<T, kind, LaneMaps>;

    static FASTNORM_FLAT void moments(const KernelArgs& args, const Tile& tile, double* mean,
                                      double* m2) {
        moments_of_rows<T>(args, tile, mean, m2);
    }

    static void normalize(const KernelArgs& args, const Tile& tile) {
        if constexpr (sizeof(T) == 2) {
            if (args.cast_before_weight) return normalize_and_cast(args, tile);
        }
        RowMap::normalize(args, tile, MapOnly());
    }

    static FASTNORM_FLAT void normalize_and_moments(const KernelArgs& args, const Tile& mapped,
                                                    const Tile& reduced, double* mean, double* m2) {
        Deviations<T> deviations(args, reduced);
        RowMap::normalize(args, mapped,
                          Interleaved<T, Deviations<T>>(args.view, mapped, reduced, deviations));
        deviations.finish(mean, m2);
    }

    static FASTNORM_FLAT void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                                            double* sum_gx) {
        GradientSums<T, kind, LaneMaps> sums(args, tile);
        reduce<T>(args.view, tile, sums);
        sums.finish(sum_g, sum_gx);
    }

    static void gradient(const KernelArgs& args, const Tile& tile) {
        for (std::int64_t from = tile.inner0; from < tile.inner1; from += ParameterSums<A>::most) {
            const std::int64_t end = from + ParameterSums<A>::most;
            gradient_of(args, tile, from, end < tile.inner1 ? end : tile.inner1);
        }
    }

    // Into the cache, as it is read again soon, and, where sum is another place, past it.
    static void add(const KernelArgs& args, const Tile& tile) {
        const View& view = args.view;
        constexpr Ahead ahead{4096};
        Sink<T> sink(true);
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const auto run = [&](const Operand& operand) {
                return run_of<T>(view, operand, tile.batch, o, s);
            };
            const T* const a = run(args.addends[0]);
            const T* const b = run(args.addends[1]);
            T* const x = run(args.x);
            for_packs<A>(tile.inner1 - tile.inner0, [&](std::int64_t k, auto valid) {
                const std::int64_t i = tile.inner0 + k;
                ahead.fetch<A>(a + i);
                ahead.fetch<A>(b + i);
                for_vectors<A>([&](auto v) {
                    store<A>(x + i, v, load<A>(a + i, v, valid) + load<A>(b + i, v, valid), valid);
                });
            });
            if (!args.sum) return;
            T* const sum = run(args.sum);
            for_segments<T>(true, sum, nullptr, tile.inner0, tile.inner1,
                            [&](std::int64_t i, std::int64_t count, bool direct) {
                                T* const to = sink.open(sum + i, direct);
                                for_packs<A>(count, [&](std::int64_t k, auto valid) {
                                    for_vectors<A>([&](auto v) {
                                        store<A>(to + k, v, load<A>(x + i + k, v, valid), valid,
                                                 direct);
                                    });
                                });
                                sink.close(count, direct);
                            });
        });
    }

  private:
    // By way of T, in a buffer: (x - mean) * rstd first, and of that the rest.
    static void normalize_and_cast(const KernelArgs& args, const Tile& tile) {
        const View& view = args.view;
        Sink<T> sink(args.stream);
        T rounded[segment];
        const V one(A(1)), zero;
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const LaneMaps<A> maps(args, tile.batch * view.stat + s);
            const NormalizeMap<V> of_x{maps.z.prescale, maps.z.mean_hi, maps.z.mean_lo,
                                       maps.z.scale, zero};
            const T* x = run_of<T>(view, args.x, tile.batch, o, s);
            const T* residual = run_of<T>(view, args.residual, tile.batch, o, s);
            T* y = run_of<T>(view, args.y, tile.batch, o, s);
            for (std::int64_t i = tile.inner0; i < tile.inner1; i += segment) {
                const std::int64_t rest = tile.inner1 - i;
                const std::int64_t count = rest < segment ? rest : segment;
                const Forward<T, ActivationKind::identity> first{x + i, nullptr, {}, {}, false};
                first.write(rounded, count, false, [&](auto...) -> const auto& { return of_x; });
                const Forward<T, kind> second{rounded,
                                              residual == nullptr ? nullptr : residual + i,
                                              mask_at(args, run_index(view, tile.batch, o, s), i),
                                              activation_params<A>(args),
                                              args.stream,
                                              false};
                second.write(sink.open(y + i, false), count, false,
                             [&, w = maps.weights + i, b = maps.biases + i](std::int64_t k, int v,
                                                                            auto valid) {
                                 return NormalizeMap<V>{one, zero, zero, load<A>(w + k, v, valid),
                                                        load<A>(b + k, v, valid)};
                             });
                sink.close(count, false);
            }
        });
    }

    static FASTNORM_FLAT void gradient_of(const KernelArgs& args, const Tile& tile,
                                          std::int64_t from, std::int64_t to) {
        const View& view = args.view;
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        const T* const first = run_of<T>(view, args.dx, tile.batch, tile.outer0, tile.stat0);
        ParameterSums<A> sums(to - from, head_of_segments(args.stream, first, from, to));
        // Once dx is written over dy there is nothing left from which to compute exact sums.
        const bool in_place = args.dx.data == args.dy.data;
        if (in_place) {
            add_rows(args, tile, from, to, sums);
            add_to_tiles(args, tile, from, to, sums);
        }
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const std::int64_t index = tile.batch * view.stat + s;
            const LaneMaps<A> maps(args, index);
            const GradientMap<V> dx_map = gradient_map<A>(args, index);
            const V unit = unit_of(args, maps);
            const T* dsum = run_of<T>(view, args.dsum, tile.batch, o, s);
            T* dx = run_of<T>(view, args.dx, tile.batch, o, s);
            T* dresidual = run_of<T>(view, args.dresidual, tile.batch, o, s);
            for_segments<T>(
                args.stream, dx, dresidual, from, to,
                [&](std::int64_t i, std::int64_t count, bool direct) {
                    const auto dx_at = [&](std::int64_t k, int v, auto valid) {
                        return WeightedGradientMap<A>{dx_map,
                                                      load<A>(maps.weights + i + k, v, valid)};
                    };
                    const auto finish = [&](std::int64_t k, int v, auto valid,
                                            const Gradient<V>& of, V value) {
                        if (!in_place) sums.add(i - from + k, v, valid, of, unit);
                        return dsum == nullptr ? value : value + load<A>(dsum + i + k, v, valid);
                    };
                    backward_at<T, kind>(args, tile.batch, o, s, i)
                        .write(dx_sink.open(dx + i, direct),
                               dresidual == nullptr ? nullptr
                                                    : dresidual_sink.open(dresidual + i, direct),
                               count, direct, args.frozen, maps.z_from(i), dx_at, One{}, 0, finish);
                    dx_sink.close(count, direct);
                    if (dresidual != nullptr) dresidual_sink.close(count, direct);
                });
        });
        if (!in_place) add_to_tiles(args, tile, from, to, sums);
    }

    // What turns centred(x) into (x - mean) * rstd.
    static FASTNORM_FN V unit_of(const KernelArgs& args, const LaneMaps<A>& maps) {
        return maps.z.scale * V(static_cast<A>(1.0 / args.weights_scale));
    }

    static FASTNORM_FN void add_rows(const KernelArgs& args, const Tile& tile, std::int64_t from,
                                     std::int64_t to, ParameterSums<A>& sums) {
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const LaneMaps<A> maps(args, tile.batch * args.view.stat + s);
            const V unit = unit_of(args, maps);
            backward_at<T, kind>(args, tile.batch, o, s, from)
                .each(to - from, maps.z_from(from),
                      [&](std::int64_t i, int v, auto valid, const Gradient<V>& of) {
                          sums.add(i, v, valid, of, unit);
                      });
        });
    }

    static FASTNORM_FN void add_to_tiles(const KernelArgs& args, const Tile& tile,
                                         std::int64_t from, std::int64_t to,
                                         const ParameterSums<A>& sums) {
        if (args.sums_of_g == nullptr) return;
        const std::int64_t at = args.sums_at(tile) + from;
        sums.add_to(args.sums_of_g + at, args.sums_of_gx + at, to - from,
                    [&](std::int64_t i, double& g, double& gx) {
                        exact_sums(args, tile, from + i, g, gx);
                    });
    }

    // Off the hot path: of element i alone, in double.
    static __attribute__((noinline)) void exact_sums(const KernelArgs& args, const Tile& tile,
                                                     std::int64_t i, double& g, double& gx) {
        alignas(64) A found[lanes<A>];
        g = gx = 0.0;
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const std::int64_t index = tile.batch * args.view.stat + s;
            const LaneMaps<A> maps(args, index);
            const double scale =
                static_cast<double>(coefficient<A>(args, Coefficient::scale)[index]);
            backward_at<T, kind>(args, tile.batch, o, s, i)
                .each(1, maps.z_from(i),
                      [&](std::int64_t, int v, auto valid, const Gradient<V>& of) {
                          store<A>(found, v, of.g, valid);
                      });
            const A x = to_float(run_of<T>(args.view, args.x, tile.batch, o, s)[i]);
            g += static_cast<double>(found[0]);
            gx += ExactCentre<A>(args, index).product(found[0], x) * (scale / args.weights_scale);
        });
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
