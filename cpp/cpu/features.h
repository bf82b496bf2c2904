// The features traversal: rows with a statistic each, whose weights and biases belong to the
// elements of inner. Backward adds up their gradients over the rows of a tile while it maps these.
// Compiled once per instruction set.
#pragma once

#include "cpu/parameter_sums.h"
#include "cpu/rows.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

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
                    return affine_of_lanes(centred, z.scale, V(maps.weights[i]), bias);
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

    // Whether elements [from, to) of rows are whole packs, which are stored where they are if they
    // are streamed.
    static FASTNORM_FN bool are_whole_packs(const KernelArgs& args, const Tile& tile,
                                            const Operand& result, std::int64_t from,
                                            std::int64_t to) {
        if ((to - from) % lanes<A> != 0) return false;
        if (!args.stream) return true;
        const T* const at = run_of<T>(args.view, result, tile.batch, 0, tile.stat0) + from;
        return reinterpret_cast<std::uintptr_t>(at) % stream_alignment == 0 &&
               result.stat_stride % stream_alignment == 0;
    }

    // Whether there is nothing but x to read, and nothing but y to write.
    static FASTNORM_FN bool are_plain(const KernelArgs& args, const Tile& tile) {
        return !args.residual && args.mask == nullptr &&
               are_whole_packs(args, tile, args.y, tile.inner0, tile.inner1);
    }
    // The same of backward without an activation, of elements [from, to).
    static FASTNORM_FN bool are_plain_gradients(const KernelArgs& args, const Tile& tile,
                                                std::int64_t from, std::int64_t to) {
        return !args.dsum && !args.dresidual && are_whole_packs(args, tile, args.dx, from, to);
    }

    // Without what takes short rows longer than their elements. By copies of its arguments: a
    // vector's store is taken for one to anything that lies elsewhere, which is then loaded again.
    static FASTNORM_FLAT void normalize_plain(const KernelArgs& of_all, const Tile& of_tile) {
        const KernelArgs args = of_all;
        const Tile tile = of_tile;
        const auto normalize = [&](auto stream) {
            args.biases == nullptr ? normalize_rows(args, tile, stream, std::false_type())
                                   : normalize_rows(args, tile, stream, std::true_type());
        };
        args.stream ? normalize(std::true_type()) : normalize(std::false_type());
    }

    template <class Stream, class HasBiases>
    static FASTNORM_FN void normalize_rows(const KernelArgs& args, const Tile& tile, Stream stream,
                                           HasBiases) {
        constexpr std::integral_constant<int, lanes<A>> all;
        constexpr bool lockstep = in_lockstep<kind, A, decltype(all)>;
        // Past the cache one row after the other, for the lines that are being put together are
        // few; and where a pack's vectors are in lockstep, that is enough of them.
        using AtATime = std::conditional_t<Stream::value || lockstep, One, SeveralRows<A>>;
        const ActParams<A> params = activation_params<A>(args);
        const Ahead ahead_x = next_tile(args.x, tile);
        const Ahead ahead_y = ahead_of_results(stream);
        const A* const weights = static_cast<const A*>(args.weights);
        const A* const biases = static_cast<const A*>(args.biases);
        const SideBySide<const T> all_x(args.view, args.x, tile);
        const SideBySide<T> all_y(args.view, args.y, tile);
        for_several(AtATime(), tile.stat1 - tile.stat0, [&](auto count, std::int64_t s) {
            constexpr int rows = count;
            using Each = Lockstep<V, rows>;
            const std::int64_t index = tile.batch * args.view.stat + tile.stat0 + s;
            const auto map = normalize_maps<A, rows>(args, index);
            const SideBySide<const T> x = all_x.from(s);
            const SideBySide<T> y = all_y.from(s);
            for (std::int64_t i = tile.inner0; i < tile.inner1; i += lanes<A>) {
                for (int r = 0; r < rows; ++r) {
                    ahead_x.fetch<A>(x.row(r) + i);
                    ahead_y.fetch_to_write<A>(y.row(r) + i);
                }
                const auto z_at = [&](auto v) {
                    const V weight = load<A>(weights + i, v, all);
                    const V bias = HasBiases::value ? load<A>(biases + i, v, all) : V();
                    const Each centred = map.centred(
                        Each::each([&](auto r) { return load<A>(x.row(r) + i, v, all); }));
                    return Each::each([&](auto r) {
                        return affine_of_lanes(centred.of[r], map.scale.of[r], weight, bias);
                    });
                };
                PackStore<A, T, rows> store;
                if constexpr (lockstep) {
                    const auto values = Act<kind>::value(
                        Pack<A>::each([&](auto v) { return z_at(v).of[0]; }), params);
                    for_vectors<A>(
                        [&](auto v) { store(y.row(0) + i, v, values.of[v], all, stream); });
                } else {
                    for_vectors<A>([&](auto v) {
                        const Each z = z_at(v);
                        unrolled<rows>([&](auto r) {
                            const V value = Act<kind>::value(z.of[r], params);
                            store(y.row(r) + i, v, value, all, stream, r);
                        });
                    });
                }
            }
        });
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
        const T* const dx = run_of<T>(args.view, args.dx, tile.batch, 0, tile.stat0);
        ParameterSums<A> sums(to - from, head_of_segments(args.stream, dx, from, to));
        // Once dx is written over dy there is nothing left from which to compute exact sums.
        const bool wanted = args.sums_of_g != nullptr || args.sums_of_gx != nullptr;
        const bool in_place = args.dx.data == args.dy.data;
        if (wanted && in_place) {
            add_rows(args, tile, from, to, wants_g, sums);
            add_to_tiles(args, tile, from, to, sums);
        }
        gradient_rows(args, tile, from, to, wants_g, sums);
        if (wanted && !in_place) add_to_tiles(args, tile, from, to, sums);
    }

    template <class WantsG>
    static FASTNORM_FN void gradient_rows(const KernelArgs& args, const Tile& tile,
                                          std::int64_t from, std::int64_t to, WantsG wants_g,
                                          ParameterSums<A>& sums) {
        if constexpr (kind == ActivationKind::identity) {
            const auto plain = [&](auto stream) {
                gradient_of_plain(args, tile, from, to, wants_g, sums, stream);
            };
            if (are_plain_gradients(args, tile, from, to)) {
                return args.stream ? plain(std::true_type()) : plain(std::false_type());
            }
        }
        gradient_of_any(args, tile, from, to, wants_g, sums);
    }

    template <class WantsG>
    static FASTNORM_FN void gradient_of_any(const KernelArgs& args, const Tile& tile,
                                            std::int64_t from, std::int64_t to, WantsG wants_g,
                                            ParameterSums<A>& sums) {
        const View& view = args.view;
        Sink<T> dx_sink(args.stream), dresidual_sink(args.stream && args.dresidual);
        const Ahead ahead = ahead_of_results(args.stream);
        const V unscaled(static_cast<A>(1.0 / args.weights_scale));
        for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) {
            const std::int64_t index = tile.batch * view.stat + s;
            const LaneMaps<A> maps(args, index);
            const GradientMap<V> dx_map = gradient_map<A>(args, index);
            const V unit = maps.z.scale * unscaled;  // turns centred(x) into (x - mean) * rstd
            const T* const dsum = run_of<T>(view, args.dsum, tile.batch, 0, s);
            T* const row = run_of<T>(view, args.dx, tile.batch, 0, s);
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
                    backward.each(
                        count, maps.z_from(i),
                        [&](std::int64_t k, int v, auto valid, const Gradient<V>& of)
                            FASTNORM_INLINED {
                                if (v == 0) ahead.fetch_to_write<A>(dx + k);
                                own.add(wants_g, k, v, valid, {of.g}, {of.centred * unit});
                                V value = dx_map(maps.weighted(of.g, i + k, v, valid), of.centred);
                                if (added != nullptr) value = value + load<A>(added + k, v, valid);
                                store_dx(dx + k, v, value, valid, direct);
                                if (dresidual == nullptr) return;
                                if (v == 0) ahead.fetch_to_write<A>(dresidual + k);
                                store_dresidual(dresidual + k, v, of.g, valid, direct);
                            });
                    dx_sink.close(count, direct);
                    if (dresidual != nullptr) dresidual_sink.close(count, direct);
                });
        }
    }

    // Without what takes short rows longer than their elements.
    template <class WantsG, class Stream>
    static FASTNORM_FN void gradient_of_plain(const KernelArgs& args, const Tile& tile,
                                              std::int64_t from, std::int64_t to, WantsG wants_g,
                                              ParameterSums<A>& sums, Stream stream) {
        constexpr std::integral_constant<int, lanes<A>> all;
        using AtATime = std::conditional_t<Stream::value, One, FewRows<A>>;  // as normalize_rows()
        const Ahead ahead_dy = next_tile(args.dy, tile), ahead_x = next_tile(args.x, tile);
        const Ahead ahead_dx = ahead_of_results(stream);
        const A* const weights = static_cast<const A*>(args.weights);
        const A unscaled = static_cast<A>(1.0 / args.weights_scale);
        const SideBySide<const T> all_dy(args.view, args.dy, tile), all_x(args.view, args.x, tile);
        const SideBySide<T> all_dx(args.view, args.dx, tile);
        for_several(AtATime(), tile.stat1 - tile.stat0, [&](auto count, std::int64_t s) {
            constexpr int rows = count;
            using Each = Lockstep<V, rows>;
            const std::int64_t index = tile.batch * args.view.stat + tile.stat0 + s;
            const auto map = normalize_maps<A, rows>(args, index);
            const auto dx_map = gradient_maps<A, rows>(args, index);
            const Each unit = map.scale * Each(unscaled);
            const SideBySide<const T> dy = all_dy.from(s), x = all_x.from(s);
            const SideBySide<T> dx = all_dx.from(s);
            SumsFrom own(sums, 0);
            for (std::int64_t i = from; i < to; i += lanes<A>) {
                for (int r = 0; r < rows; ++r) {
                    ahead_dy.fetch<A>(dy.row(r) + i);
                    ahead_x.fetch<A>(x.row(r) + i);
                    ahead_dx.fetch_to_write<A>(dx.row(r) + i);
                }
                PackStore<A, T, rows> store;
                for_vectors<A>([&](auto v) {
                    const V weight = load<A>(weights + i, v, all);
                    const Each g =
                        Each::each([&](auto r) { return load<A>(dy.row(r) + i, v, all); });
                    const Each centred = map.centred(
                        Each::each([&](auto r) { return load<A>(x.row(r) + i, v, all); }));
                    own.add(wants_g, i - from, v, all, g.of, (centred * unit).of);
                    const Each value =
                        dx_map(Each::each([&](auto r) { return g.of[r] * weight; }), centred);
                    unrolled<rows>(
                        [&](auto r) { store(dx.row(r) + i, v, value.of[r], all, stream, r); });
                });
            }
        });
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
                          all.add(wants_g, i, v, valid, {of.g}, {of.centred * unit});
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
