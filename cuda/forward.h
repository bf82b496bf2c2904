// Forward, as the kernels need it: moments of a chunk, statistics and coefficients of a statistic,
// and y = act(affine(centred(x)) + residual) of a chunk.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/epilogue.h"
#include "cuda/rows.h"
#include "cuda/statistics.h"

#include "core/maps.h"

namespace fastnorm::cuda {

template <class Element, bool whole_packs, bool smooth_activation, int statistics = 1>
struct Forward {
    using T = Element;
    using A = accumulator_t<T>;
    static constexpr bool whole = whole_packs;
    static constexpr int width = statistics;  // of a group
    using Chunk = Lane<T, whole, width>;
    static constexpr int packs = lane_packs<T, width>;
    static constexpr int values = pack_elements<T>;
    enum { x_array, residual_array };

    const Arguments& args;

    FASTNORM_DEVICE Forward(const Block&, const Arguments& arguments) : args(arguments) {}

    // What the reduction reads, and the map once more.
    FASTNORM_DEVICE int arrays() const { return 1; }
    FASTNORM_DEVICE int arrays_of_map() const { return args.residual ? 2 : 1; }
    FASTNORM_DEVICE const Operand& array(int k) const {
        return k == x_array ? args.x : args.residual;
    }
    // What takes an array's place, or is empty.
    FASTNORM_DEVICE const Operand& result(int k) const { return k == x_array ? args.y : args.dx; }

    FASTNORM_DEVICE void prepare(Coefficients<A>&, std::int64_t) const {}

    // The moments of a chunk, in every lane.
    template <class Source>
    FASTNORM_DEVICE void reduce(const Block& block, const Chunk& lane, const Coefficients<A>*,
                                std::int64_t, std::int64_t chunk, const Source& source,
                                Partial (&result)[width]) const {
        const double count = elements_of_chunk<T, whole, width>(args.rows, chunk);
        const double share = 1.0 / count;
        const auto reread = [&](auto&& use) {
            constexpr int batch = batch_of<Source>;
            Pack<T> x[batch];
            lane.template in_batches<batch>(
                [&](int b, int i, const Position& at, int elements) {
                    x[b] = source.pack(args.x, x_array, i, at, elements);
                },
                [&](int b, int, const Position&, int elements) { use(x[b], elements); });
        };
        if constexpr (width > 1) {
            // About the mean of the chunk's first runs: one pass, unless that was a poor guess.
            A pivots[width];
            first_mean(block, lane, source, chunk, pivots);
            if (about(block, pivots, count, share, reread, result)) return;
            about_own_mean<double>(block, count, share, reread, result);
        } else {
            const auto moments = [&](auto&& each_pack) {
                if (about_own_mean<A>(block, count, share, each_pack, result)) return;
                // Numbers whose squares leave float's range, or lie among the subnormals.
                if constexpr (sizeof(A) == sizeof(float)) {
                    about_own_mean<double>(block, count, share, each_pack, result);
                }
            };
            if constexpr (whole && !Source::cheap) {
                Pack<T> x[packs];
                lane.each([&](int i, const Position& at, int elements) {
                    x[i] = source.pack(args.x, x_array, i, at, elements);
                });
                moments([&](auto&& use) {
                    lane.each([&](int i, const Position&, int elements) { use(x[i], elements); });
                });
            } else {
                moments(reread);
            }
        }
    }

    template <class PartialOf>
    FASTNORM_DEVICE Partial merge(const Block& block, PartialOf&& partial) const {
        const Rows& rows = args.rows;
        const Moments m = merged_moments(
            block, rows.chunks, static_cast<double>(rows.elements), partial,
            [&](std::int64_t chunk) { return elements_of_chunk<T, whole, width>(rows, chunk); });
        return {m.mean, m.m2};
    }

    // Mean and rstd, as they are used: what is returned is that.
    FASTNORM_DEVICE Partial finish(const Partial& moments, std::int64_t stat, bool store) const {
        const auto count = static_cast<double>(args.rows.elements);
        double mean = moments.first;
        const double var = moments.second / count;
        double rstd = 1.0 / ::sqrt(var + args.eps);
        if (sizeof(T) == 2) {
            mean = static_cast<float>(mean);
            rstd = static_cast<float>(rstd);
        }
        if (store) {
            args.mean.set(stat, mean);
            args.rstd_or_var.set(stat, rstd);
            const double batch_var = moments.second / (args.unbiased ? count - 1.0 : count);
            args.running_mean.set(
                stat, running_update(args.running_mean.get(stat), moments.first, args.momentum));
            args.running_var.set(
                stat, running_update(args.running_var.get(stat), batch_var, args.momentum));
        }
        return {mean, rstd};
    }

    FASTNORM_DEVICE void set(Coefficients<A>& to, std::int64_t stat,
                             const Partial& finished) const {
        set_forward(to, args, stat, finished.first, finished.second);
    }
    // From mean and variance that are given.
    FASTNORM_DEVICE void set_given(Coefficients<A>& to, std::int64_t stat) const {
        const double var = args.rstd_or_var.get(stat);
        set_forward(to, args, stat, args.mean.get(stat), 1.0 / ::sqrt(var + args.eps));
    }

    template <class Source>
    FASTNORM_DEVICE void map(const Block& block, const Chunk& lane, const Coefficients<A>* of,
                             std::int64_t stat, std::int64_t chunk, const Source& source) const {
        with_activation<smooth_activation>(args.kind, [&](auto activation) {
            map_as<decltype(activation)>(block, lane, of, stat, chunk, source);
        });
    }

  private:
    // Packs of each array that a lane has at a time, of two arrays at most. (A smooth activation is
    // much code for each element.)
    template <class Source>
    static constexpr int batch_of = !whole || smooth_activation   ? 1
                                    : Source::cheap || packs <= 4 ? 2
                                                                  : 4;

    // The sums of a statistic's values: those of one element of every pack, or of all.
    template <class D>
    FASTNORM_DEVICE static void totals(const Block& block, const D (&sums)[values],
                                       D (&result)[width]) {
        if constexpr (width > 1) {
#pragma unroll
            for (int e = 0; e < width; ++e) result[e] = sum_of_warp(block, sums[e]);
        } else {
            result[0] = sum_of_warp(block, sum_of(sums));
        }
    }

    // The mean of a chunk's first runs, for each statistic of a group.
    template <class Source>
    FASTNORM_DEVICE void first_mean(const Block& block, const Chunk& lane, const Source& source,
                                    std::int64_t chunk, A (&means)[width]) const {
        constexpr int looked_at = 4;  // packs of a lane
        A sums[values] = {}, sum[width];
        lane.template first<looked_at>([&](int i, const Position& at, int elements) {
            const Pack<T> x = source.pack(args.x, x_array, i, at, elements);
#pragma unroll
            for (int e = 0; e < values; ++e) sums[e] += widen(x.element[e]);
        });
        totals(block, sums, sum);
        const std::int64_t rest = args.rows.runs - chunk * (packs * warp_size);
        const auto runs =
            static_cast<A>(rest < looked_at * warp_size ? rest : looked_at * warp_size);
#pragma unroll
        for (int e = 0; e < width; ++e) {
            const A mean = sum[e] / runs;
            means[e] = is_finite(mean) ? mean : A(0);
        }
    }

    // The moments from sums about pivots, and whether they can be trusted. each_pack(f) calls
    // f(pack, elements).
    template <class D, class EachPack>
    FASTNORM_DEVICE static bool about(const Block& block, const D (&pivots)[width], double count,
                                      double share, EachPack&& each_pack,
                                      Partial (&result)[width]) {
        D first[values] = {}, second[values] = {};
        each_pack([&](const Pack<T>& x, int elements) {
#pragma unroll
            for (int e = 0; e < values; ++e) {
                const D pivot = pivots[width > 1 ? e : 0];
                const D d = e < elements ? static_cast<D>(widen(x.element[e])) - pivot : D(0);
                first[e] += d;
                second[e] = fma(d, d, second[e]);
            }
        });
        D sums[width], square_sums[width];
        totals(block, first, sums);
        totals(block, second, square_sums);
        bool good = true;
#pragma unroll
        for (int e = 0; e < width; ++e) {
            const auto origin = static_cast<double>(pivots[e]);
            const auto sum = static_cast<double>(sums[e]);
            const auto square_sum = static_cast<double>(square_sums[e]);
            const Moments m = moments_about(origin, count, share, sum, square_sum);
            good &= trustworthy<D>(m, origin, sum, square_sum);
            result[e] = {m.mean, m.m2};
        }
        return good;
    }

    template <class D, class EachPack>
    FASTNORM_DEVICE static bool about_own_mean(const Block& block, double count, double share,
                                               EachPack&& each_pack, Partial (&result)[width]) {
        D sums[values] = {}, sum[width];
        each_pack([&](const Pack<T>& x, int) {
#pragma unroll
            for (int e = 0; e < values; ++e) sums[e] += static_cast<D>(widen(x.element[e]));
        });
        totals(block, sums, sum);
#pragma unroll
        for (int e = 0; e < width; ++e) {
            sum[e] *= static_cast<D>(share);
            if (!is_finite(sum[e])) sum[e] = D(0);
        }
        return about(block, sum, count, share, each_pack, result);
    }

    template <class Activation, class Source>
    FASTNORM_DEVICE void map_as(const Block& block, const Chunk& lane, const Coefficients<A>* of,
                                std::int64_t stat, std::int64_t chunk, const Source& source) const {
        const ActParams<A> params = params_of<A>(args);
        const bool has_residual = static_cast<bool>(args.residual);
        std::uint32_t bits[width] = {};
        constexpr int batch = batch_of<Source>;
        Pack<T> x[batch], residual[batch];
        lane.template in_batches<batch>(
            [&](int b, int i, const Position& at, int elements) {
                x[b] = source.pack(args.x, x_array, i, at, elements);
                residual[b] = has_residual
                                  ? source.more(args.residual, residual_array, at, elements)
                                  : Pack<T>{};
            },
            [&](int b, int i, const Position& at, int elements) {
                Pack<T> y;
#pragma unroll
                for (int e = 0; e < values; ++e) {
                    const int s = width > 1 ? e : 0;
                    const NormalizeMap<A> map = normalize_map(of[s]);
                    A z = map.affine(map.centred(widen(x[b].element[e])));
                    if (has_residual) z = z + widen(residual[b].element[e]);
                    narrow(Activation::value(z, params), y.element[e]);
                    if constexpr (Activation::piecewise) {
                        bits[s] |= std::uint32_t{Activation::is_unit(z, params)}
                                   << (width > 1 ? i : i * values + e);
                    }
                }
                source.put(args.y, x_array, at, elements, y);
            });
        if constexpr (Activation::piecewise) {
            if (args.mask == nullptr) return;
#pragma unroll
            for (int s = 0; s < width; ++s) {
                if (stat + s >= args.rows.stats) break;
                block.store_element(mask_word(args, stat + s, chunk, block.lane()), bits[s]);
            }
            if (stat == 0 && chunk == 0 && block.lane() < signature_words) {
                block.store_element(
                    args.mask + block.lane(),
                    static_cast<std::uint32_t>(args.signature >> (32 * block.lane())));
            }
        }
    }
};

}  // namespace fastnorm::cuda
