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

template <class Element, bool whole_packs, bool smooth_activation>
struct Forward {
    using T = Element;
    using A = accumulator_t<T>;
    static constexpr bool whole = whole_packs;
    static constexpr int packs = lane_packs<T>;
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
    FASTNORM_DEVICE Partial reduce(const Block& block, const Lane<T, whole>& lane,
                                   const Coefficients<A>&, std::int64_t, std::int64_t chunk,
                                   const Source& source) const {
        const double count = elements_of_chunk<T, whole>(args.rows, chunk);
        const double share = 1.0 / count;
        const auto moments = [&](auto&& each_pack) -> Partial {
            bool good;
            Moments m = about_own_mean<A>(block, count, share, good, each_pack);
            if constexpr (sizeof(A) == sizeof(float)) {
                // Numbers whose squares leave float's range, or lie among the subnormals.
                if (!good) m = about_own_mean<double>(block, count, share, good, each_pack);
            }
            return {m.mean, m.m2};
        };
        if constexpr (whole && !Source::cheap) {
            Pack<T> x[packs];
            lane.each([&](int i, const Position& at, int elements) {
                x[i] = source.pack(args.x, x_array, i, at, elements);
            });
            return moments([&](auto&& use) {
                lane.each([&](int i, const Position&, int elements) { use(x[i], elements); });
            });
        } else {
            return moments([&](auto&& use) {
                constexpr int batch = batch_of<Source>;
                Pack<T> x[batch];
                lane.template in_batches<batch>(
                    [&](int b, int i, const Position& at, int elements) {
                        x[b] = source.pack(args.x, x_array, i, at, elements);
                    },
                    [&](int b, int, const Position&, int elements) { use(x[b], elements); });
            });
        }
    }

    template <class PartialOf>
    FASTNORM_DEVICE Partial merge(const Block& block, PartialOf&& partial) const {
        const Rows& rows = args.rows;
        const Moments m = merged_moments(
            block, rows.chunks, static_cast<double>(rows.elements), partial,
            [&](std::int64_t chunk) { return elements_of_chunk<T, whole>(rows, chunk); });
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
    FASTNORM_DEVICE void map(const Block& block, const Lane<T, whole>& lane,
                             const Coefficients<A>& of, std::int64_t stat, std::int64_t chunk,
                             const Source& source) const {
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

    // each_pack(f) calls f(pack, elements).
    template <class D, class EachPack>
    FASTNORM_DEVICE static Moments about_own_mean(const Block& block, double count, double share,
                                                  bool& good, EachPack&& each_pack) {
        D sums[values] = {};
        each_pack([&](const Pack<T>& x, int) {
#pragma unroll
            for (int e = 0; e < values; ++e) sums[e] += static_cast<D>(widen(x.element[e]));
        });
        const D mean = sum_of_warp(block, sum_of(sums)) * static_cast<D>(share);
        const D pivot = is_finite(mean) ? mean : D(0);
        D first[values] = {}, second[values] = {};
        each_pack([&](const Pack<T>& x, int elements) {
#pragma unroll
            for (int e = 0; e < values; ++e) {
                const D d = e < elements ? static_cast<D>(widen(x.element[e])) - pivot : D(0);
                first[e] += d;
                second[e] = fma(d, d, second[e]);
            }
        });
        const double sum = static_cast<double>(sum_of_warp(block, sum_of(first)));
        const double square_sum = static_cast<double>(sum_of_warp(block, sum_of(second)));
        const double origin = static_cast<double>(pivot);
        const Moments m = moments_about(origin, count, share, sum, square_sum);
        good = trustworthy<D>(m, origin, sum, square_sum);
        return m;
    }

    template <class Activation, class Source>
    FASTNORM_DEVICE void map_as(const Block& block, const Lane<T, whole>& lane,
                                const Coefficients<A>& of, std::int64_t stat, std::int64_t chunk,
                                const Source& source) const {
        const NormalizeMap<A> map{of.z.prescale, of.z.mean_hi, of.z.mean_lo, of.z.scale, of.z.bias};
        const ActParams<A> params = params_of<A>(args);
        const bool has_residual = static_cast<bool>(args.residual);
        std::uint32_t bits = 0;
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
                    A z = map.affine(map.centred(widen(x[b].element[e])));
                    if (has_residual) z = z + widen(residual[b].element[e]);
                    narrow(Activation::value(z, params), y.element[e]);
                    if constexpr (Activation::piecewise) {
                        bits |= std::uint32_t{Activation::is_unit(z, params)} << (i * values + e);
                    }
                }
                source.put(args.y, x_array, at, elements, y);
            });
        if constexpr (Activation::piecewise) {
            if (args.mask == nullptr) return;
            block.store_element(mask_word(args, stat, chunk, block.lane()), bits);
            if (stat == 0 && chunk == 0 && block.lane() < signature_words) {
                block.store_element(
                    args.mask + block.lane(),
                    static_cast<std::uint32_t>(args.signature >> (32 * block.lane())));
            }
        }
    }
};

}  // namespace fastnorm::cuda
