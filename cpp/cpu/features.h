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

    // Those from an element on.
    class From {
      public:
        FASTNORM_FN From(ParameterSums& sums, std::int64_t i)
            : g_(sums.g_ + sums.shift_ + i), gx_(sums.gx_ + sums.shift_ + i) {}

        // Vector v of the pack at i. unit: what turns centred(x) into (x - mean) * rstd; WantsG: a
        // constant, whether sums of g are made.
        template <class WantsG, class Valid>
        FASTNORM_FN void add(WantsG, std::int64_t i, int v, Valid valid, const Gradient<V>& of,
                             V unit) {
            if constexpr (WantsG::value) {
                store<A>(g_ + i, v, load<A>(g_ + i, v, valid) + of.g, valid);
            }
            store<A>(gx_ + i, v, fma(of.g, of.centred * unit, load<A>(gx_ + i, v, valid)), valid);
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

template <class T, ActivationKind kind>
struct Features {
    using A = accumulator_t<T>;
    using V = Vec<A>;
    using RowMap = RowsMap<T, kind, LaneMaps>;
    using SumsFrom = typename ParameterSums<A>::From;

    static FASTNORM_FLAT void moments(const KernelArgs& args, const Tile& tile, double* mean,
                                      double* m2) {
        moments_of_rows<T>(args, tile, mean, m2);
    }

    static void normalize(const KernelArgs& args, const Tile& tile) {
        if (TinyRows<T>::are_plain(args)) {
            const LaneMaps<A> maps(args, 0);
            return TinyRows<T>::template normalize<kind>(
                args, tile, [&](const NormalizeMap<V>& z, std::int64_t i, V centred) {
                    const V bias(maps.biases == nullptr ? A(0) : maps.biases[i]);
                    return fma(centred * z.scale, V(maps.weights[i]), bias);
                });
        }
        if constexpr (sizeof(T) == 2) {
            if (args.cast_before_weight) return normalize_and_cast(args, tile);
        }
        if (are_plain(args, tile)) return normalize_plain(args, tile);
        RowMap::normalize(args, tile, MapOnly{next_tile(args.x, tile)});
    }

    static FASTNORM_FLAT void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                                            double* sum_gx) {
        gradient_sums_of_rows<T, kind, LaneMaps>(args, tile, sum_g, sum_gx);
    }

    static void gradient(const KernelArgs& args, const Tile& tile) {
        for (std::int64_t from = tile.inner0; from < tile.inner1; from += ParameterSums<A>::most) {
            const std::int64_t end = from + ParameterSums<A>::most;
            const std::int64_t to = end < tile.inner1 ? end : tile.inner1;
            // Often there is no bias, whose gradient takes a tenth of the time; of a loop with an
            // activation it takes less than a second one is worth.
            if constexpr (kind == ActivationKind::identity) {
                if (args.sums_of_g == nullptr) {
                    gradient_of(args, tile, from, to, std::false_type());
                    continue;
                }
            }
            gradient_of(args, tile, from, to, std::true_type());
        }
    }

    // Into the cache, as it is read again soon.
    static void add(const KernelArgs& args, const Tile& tile) {
        constexpr Ahead ahead{Walk<T>::fetch_bytes};
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const auto run = [&](const Operand& operand) {
                return run_of<T>(args.view, operand, tile.batch, o, s) + tile.inner0;
            };
            const T* const a = run(args.addends[0]);
            const T* const b = run(args.addends[1]);
            T* const x = run(args.x);
            for_packs<A>(tile.inner1 - tile.inner0, [&](std::int64_t i, auto valid) {
                ahead.fetch<A>(a + i);
                ahead.fetch<A>(b + i);
                for_vectors<A>([&](auto v) {
                    store<A>(x + i, v, load<A>(a + i, v, valid) + load<A>(b + i, v, valid), valid);
                });
            });
        });
    }

  private:
    // What a map fetches: the next tile's rows, so that memory is read while results are written to
    // it.
    static FASTNORM_FN Ahead next_tile(const Operand& operand, const Tile& tile) {
        return {operand.stat_stride * (tile.stat1 - tile.stat0)};
    }

    // Rows of whole packs, which are stored where they are if they are streamed, and nothing but x
    // to read.
    static FASTNORM_FN bool are_plain(const KernelArgs& args, const Tile& tile) {
        if (args.residual || args.mask != nullptr) return false;
        if ((tile.inner1 - tile.inner0) % lanes<A> != 0) return false;
        if (!args.stream) return true;
        const T* const y = run_of<T>(args.view, args.y, tile.batch, 0, tile.stat0) + tile.inner0;
        return reinterpret_cast<std::uintptr_t>(y) % stream_alignment == 0 &&
               args.y.stat_stride % stream_alignment == 0;
    }

    // Without what takes short rows longer than their elements. By copies of its arguments: a
    // vector's store is taken for one to anything that lies elsewhere, which is then loaded again.
    static FASTNORM_FN void normalize_plain(const KernelArgs& of_all, const Tile& of_tile) {
        const KernelArgs args = of_all;
        const Tile tile = of_tile;
        const auto normalize = [&](auto stream) {
            constexpr std::integral_constant<int, lanes<A>> all;
            const ActParams<A> params = activation_params<A>(args);
            const Ahead ahead_x = next_tile(args.x, tile);
            const Ahead ahead_y = ahead_of_results(stream);
            for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) {
                const LaneMaps<A> maps(args, tile.batch * args.view.stat + s);
                const auto map_at = maps.z_from(0);
                const T* const x = run_of<T>(args.view, args.x, tile.batch, 0, s);
                T* const y = run_of<T>(args.view, args.y, tile.batch, 0, s);
                for (std::int64_t i = tile.inner0; i < tile.inner1; i += lanes<A>) {
                    ahead_x.fetch<A>(x + i);
                    ahead_y.fetch_to_write<A>(y + i);
                    PackStore<A, T> store;
                    const auto z = [&](int v) {
                        const auto map = map_at(i, v, all);
                        return map.affine(map.centred(load<A>(x + i, v, all)));
                    };
                    if constexpr (in_lockstep<kind, A, decltype(all)>) {
                        const auto values = Act<kind>::value(Pack<A>::each(z), params);
                        for_vectors<A>([&](auto v) { store(y + i, v, values.of[v], all, stream); });
                    } else {
                        for_vectors<A>([&](auto v) {
                            store(y + i, v, Act<kind>::value(z(v), params), all, stream);
                        });
                    }
                }
            }
        };
        args.stream ? normalize(std::true_type()) : normalize(std::false_type());
    }

    // As a NormalizeMap of (x - mean) * rstd.
    template <class Valid>
    struct WeightsAlone {
        const LaneMaps<A>& of;
        std::int64_t i;
        int v;
        Valid valid;

        FASTNORM_FN V centred(V x) const { return x; }
        FASTNORM_FN V affine(V x) const {
            return fma(x, load<A>(of.weights + i, v, valid), of.bias(i, v, valid));
        }
    };

    // By way of T, in a buffer: (x - mean) * rstd first, and of that the rest.
    static void normalize_and_cast(const KernelArgs& args, const Tile& tile) {
        const View& view = args.view;
        Sink<T> sink(args.stream);
        T rounded[segment];
        const V zero;
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
                const Forward<T, ActivationKind::identity> first{
                    x + i, nullptr, {}, {}, false, next_tile(args.x, tile)};
                first.write(rounded, count, false, [&](auto...) -> const auto& { return of_x; });
                const Forward<T, kind> second{rounded,
                                              residual == nullptr ? nullptr : residual + i,
                                              mask_at(args, run_index(view, tile.batch, o, s), i),
                                              activation_params<A>(args),
                                              args.stream,
                                              Ahead()};
                second.write(sink.open(y + i, false), count, false,
                             [&](std::int64_t k, int v, auto valid) {
                                 return WeightsAlone<decltype(valid)>{maps, i + k, v, valid};
                             });
                sink.close(count, false);
            }
        });
    }

    template <class WantsG>
    static FASTNORM_FLAT void gradient_of(const KernelArgs& args, const Tile& tile,
                                          std::int64_t from, std::int64_t to, WantsG wants_g) {
        const View& view = args.view;
        const auto dx_of = [&](std::int64_t s) {
            return run_of<T>(view, args.dx, tile.batch, 0, s);
        };
        ParameterSums<A> sums(to - from,
                              head_of_segments(args.stream, dx_of(tile.stat0), from, to));
        // Once dx is written over dy there is nothing left from which to compute exact sums.
        const bool wanted = args.sums_of_g != nullptr || args.sums_of_gx != nullptr;
        const bool in_place = args.dx.data == args.dy.data;
        if (wanted && in_place) {
            add_rows(args, tile, from, to, wants_g, sums);
            add_to_tiles(args, tile, from, to, sums);
        }
        Sink<T> dx_sink(args.stream), dresidual_sink(args.stream && args.dresidual);
        const Ahead ahead = ahead_of_results(args.stream);
        const V unscaled(static_cast<A>(1.0 / args.weights_scale));
        for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) {
            const std::int64_t index = tile.batch * view.stat + s;
            const LaneMaps<A> maps(args, index);
            const GradientMap<V> dx_map = gradient_map<A>(args, index);
            const V unit = maps.z.scale * unscaled;  // turns centred(x) into (x - mean) * rstd
            const T* const dsum = run_of<T>(view, args.dsum, tile.batch, 0, s);
            T* const row = dx_of(s);
            T* const residual_row = run_of<T>(view, args.dresidual, tile.batch, 0, s);
            for_segments<T>(
                args.stream, row, residual_row, from, to,
                [&](std::int64_t i, std::int64_t count, bool direct) {
                    SumsFrom own(sums, i - from);
                    T* const dx = dx_sink.open(row + i, direct);
                    T* const dresidual = residual_row == nullptr
                                             ? nullptr
                                             : dresidual_sink.open(residual_row + i, direct);
                    const T* const added = dsum == nullptr ? nullptr : dsum + i;
                    Backward<T, kind> backward = backward_at<T, kind>(args, tile.batch, 0, s, i);
                    backward.ahead_dy = next_tile(args.dy, tile);
                    backward.ahead_x = next_tile(args.x, tile);
                    PackStore<A, T> store_dx, store_dresidual;
                    backward.each(count, maps.z_from(i),
                                  [&](std::int64_t k, int v, auto valid, const Gradient<V>& of)
                                      FASTNORM_INLINED {
                                          if (v == 0) ahead.fetch_to_write<A>(dx + k);
                                          own.add(wants_g, k, v, valid, of, unit);
                                          V value = dx_map(maps.weighted(of.g, i + k, v, valid),
                                                           of.centred);
                                          if (added != nullptr)
                                              value = value + load<A>(added + k, v, valid);
                                          store_dx(dx + k, v, value, valid, direct);
                                          if (dresidual == nullptr) return;
                                          if (v == 0) ahead.fetch_to_write<A>(dresidual + k);
                                          store_dresidual(dresidual + k, v, of.g, valid, direct);
                                      });
                    dx_sink.close(count, direct);
                    if (dresidual != nullptr) dresidual_sink.close(count, direct);
                });
        }
        if (wanted && !in_place) add_to_tiles(args, tile, from, to, sums);
    }

    template <class WantsG>
    static FASTNORM_FN void add_rows(const KernelArgs& args, const Tile& tile, std::int64_t from,
                                     std::int64_t to, WantsG wants_g, ParameterSums<A>& sums) {
        const V unscaled(static_cast<A>(1.0 / args.weights_scale));
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const LaneMaps<A> maps(args, tile.batch * args.view.stat + s);
            const V unit = maps.z.scale * unscaled;
            SumsFrom all(sums, 0);
            backward_at<T, kind>(args, tile.batch, o, s, from)
                .each(to - from, maps.z_from(from),
                      [&](std::int64_t i, int v, auto valid, const Gradient<V>& of) {
                          all.add(wants_g, i, v, valid, of, unit);
                      });
        });
    }

    static FASTNORM_FN void add_to_tiles(const KernelArgs& args, const Tile& tile,
                                         std::int64_t from, std::int64_t to,
                                         const ParameterSums<A>& sums) {
        const std::int64_t at = args.sums_at(tile) + from;
        const auto of = [&](double* all) { return all == nullptr ? nullptr : all + at; };
        sums.add_to(of(args.sums_of_g), of(args.sums_of_gx), to - from,
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
