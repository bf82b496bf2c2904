// Forward, as the kernels need it: moments of a chunk, statistics and coefficients of a statistic,
// and y = act(affine(centred(x)) + residual) of a chunk.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/epilogue.h"
#include "cuda/parameters.h"
#include "cuda/rows.h"
#include "cuda/statistics.h"

#include "core/maps.h"

namespace fastnorm::cuda {

template <class Element, bool whole_packs, bool smooth_activation, int statistics = 1,
          bool has_features = false>
struct Forward {
    using T = Element;
    using A = accumulator_t<T>;
    static constexpr bool whole = whole_packs;
    static constexpr int width = statistics;  // of a pack
    static constexpr bool features = has_features;
    using Chunk = Lane<T, whole, width>;
    using Sets = MomentsOfSets;
    static constexpr int packs = lane_packs<T, width>;
    static constexpr int values = pack_elements<T>;
    enum { x_array, residual_array };

    const Arguments& args;

    FASTNORM_DEVICE Forward(const Block&, const Arguments& arguments) : args(arguments) {}

    // What the reduction reads, and the map once more.
    FASTNORM_DEVICE Arrays arrays() const { return arrays_of_forward(args); }
    FASTNORM_DEVICE const Operand& array(int k) const {
        if (features && args.addends_of_x[0]) return args.addends_of_x[k];
        return k == x_array ? args.x : args.residual;
    }
    // What takes an array's place, or is empty.
    FASTNORM_DEVICE const Operand& result(int k) const { return k == x_array ? args.y : args.dx; }

    FASTNORM_DEVICE void prepare(Coefficients<A>&, std::int64_t) const {}

    // Before all else, if x is to be made: from its addends, in the first one's place.
    static constexpr bool makes_x = features;
    template <class Source>
    FASTNORM_DEVICE void make_x(const Chunk& lane, const Source& source) const {
        lane.each([&](int i, const Position& at, int elements) {
            if (elements == 0) return;
            const Pack<T> a = source.pack(args.x, 0, i, at, elements);
            const Pack<T> b = source.pack(args.x, 1, i, at, elements);
            const Pack<T> x = sum_of_packs(a, b);
            source.keep(x_array, i, x);
            source.put(args.x, x_array, at, elements, x);
        });
    }

    // The moments of a chunk, of the own statistic.
    template <class Source>
    FASTNORM_DEVICE Partial reduce(const Block& block, const Chunk& lane, const Coefficients<A>*,
                                   const Source& source) const {
        const double count = elements_of_chunks<T, whole, width>(args.rows, lane.chunk());
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
            first_mean(block, lane, source, pivots);
            const Sums found = about(block, pivots, count, share, reread);
            const bool counts = lane.has_stat(own_element<width>(block));
            if (!block.any(counts && !found.good)) return found.partial;
            const Sums again = about_exact_mean(block, count, share, reread);
            return found.good ? found.partial : again.partial;
        } else {
            const auto moments = [&](auto&& each_pack) {
                constexpr A nothing[1] = {};
                const Sums found = about_own_mean(block, nothing, count, share, each_pack);
                // Sums or squares that leave the range, or lie among the subnormals; equal numbers.
                if (found.good) return found.partial;
                return about_exact_mean(block, count, share, each_pack).partial;
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
                return moments(reread);
            }
        }
    }

    template <class PartialOf>
    FASTNORM_DEVICE Partial merge(const Block& block, int lanes, std::int64_t parts,
                                  PartialOf&& partial) const {
        const Rows& rows = args.rows;
        return merged_moments(block, lanes, parts, static_cast<double>(rows.elements), partial,
                              [&](std::int64_t part) {
                                  return elements_of_chunks<T, whole, width>(
                                      rows, part * rows.chunks_of_part, rows.chunks_of_part);
                              });
    }

    // What a statistic has with those that share its mean: of its own alone, if there are none.
    FASTNORM_DEVICE OfMean alone(const Partial& own, std::int64_t) const { return {own, 1.0}; }
    template <class Total>
    FASTNORM_DEVICE OfMean together(const Block& block, std::int64_t, Total&& total) const {
        return moments_of_mean(block, args.rows, total);
    }

    // Mean and rstd as they are used, which are also what is returned, and the coefficients.
    FASTNORM_DEVICE void finish(Coefficients<A>& to, std::int64_t stat, const Partial&,
                                const OfMean& of, bool store) const {
        const auto count = args.values_of_mean();
        const std::int64_t index = args.mean_of(stat);
        const Partial moments = of.together;
        double mean = moments.first;
        const double var = moments.second / count;
        double rstd = rstd_of_variance(var, args.eps);
        if (sizeof(T) == 2) {
            mean = static_cast<float>(mean);
            rstd = static_cast<float>(rstd);
        }
        set(to, stat, mean, rstd);
        if (!store || stat != index * args.rows.stats_of_mean) return;
        args.mean.set(index, mean);
        args.rstd_or_var.set(index, rstd);
        if (args.addends != nullptr) {
            args.addends[stat] = moments;
            return;
        }
        const double batch_var = batch_variance(moments.second, count, args.unbiased);
        args.running_mean.set(
            stat, running_update(args.running_mean.get(stat), moments.first, args.momentum));
        args.running_var.set(stat,
                             running_update(args.running_var.get(stat), batch_var, args.momentum));
    }

    // From mean and variance that are given.
    FASTNORM_DEVICE void set_given(Coefficients<A>& to, std::int64_t stat) const {
        const double var = args.rstd_or_var.get(stat);
        set(to, stat, args.mean.get(stat), rstd_of_variance(var, args.eps));
    }

    template <class Source>
    FASTNORM_DEVICE void map(const Block& block, const Chunk& lane, const Coefficients<A>* of,
                             const Source& source) const {
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
                const Parameters<T, whole, features> parameters(block, args, at.pack, elements);
                A z[values];
#pragma unroll
                for (int e = 0; e < values; ++e) {
                    const NormalizeMap<A> map = normalize_map(of[width > 1 ? e : 0]);
                    z[e] = parameters.z(map, map.centred(widen(x[b].element[e])), e);
                    if (has_residual) z[e] = z[e] + widen(residual[b].element[e]);
                }
                Pack<T> y;
                with_activation<smooth_activation>(args.kind, [&](auto activation) {
                    using Activation = decltype(activation);
#pragma unroll
                    for (int e = 0; e < values; ++e) {
                        narrow(Activation::value(z[e], params), y.element[e]);
                        if constexpr (Activation::piecewise) {
                            bits[width > 1 ? e : 0] |=
                                std::uint32_t{Activation::is_unit(z[e], params)}
                                << (width > 1 ? i : i * values + e);
                        }
                    }
                });
                source.put(args.y, x_array, at, elements, y);
            });
        if constexpr (!smooth_activation) {
            if (args.mask == nullptr) return;
#pragma unroll
            for (int s = 0; s < width; ++s) {
                // Of no statistic, beside the last one: its coefficients are nobody's.
                const bool ours = lane.has_stat(s);
                block.store_element(mask_word<width>(args, lane.task(), s, block.lane()),
                                    ours ? bits[s] : 0);
            }
            if (lane.task() == 0 && block.lane() < signature_words) {
                block.store_element(
                    args.mask + block.lane(),
                    static_cast<std::uint32_t>(args.signature >> (32 * block.lane())));
            }
        }
    }

  private:
    // Under features it is not known here which weight is near: centred(x) is made about 1.
    FASTNORM_DEVICE void set(Coefficients<A>& to, std::int64_t stat, double mean,
                             double rstd) const {
        const double prescale = features ? backward_prescale<A>(mean, rstd)
                                         : forward_prescale<A>(mean, rstd, args.weight_of(stat));
        set_forward(to, args, stat, mean, rstd, prescale);
    }

    // Packs of each array that a lane has at a time, of two arrays at most. (A smooth activation is
    // much code for each element.)
    template <class Source>
    static constexpr int batch_of = !whole || smooth_activation   ? 1
                                    : Source::cheap || packs <= 4 ? 2
                                                                  : 4;

    // One for each statistic.
    static constexpr int sum_count = sums_of_lane<T, width>;
    template <class D>
    FASTNORM_DEVICE static void fold(const D (&sums)[sum_count], D (&folded)[width]) {
        if constexpr (width > 1) {
#pragma unroll
            for (int e = 0; e < width; ++e) folded[e] = sums[e];
        } else {
            folded[0] = sum_of(sums);
        }
    }

    // The mean of a chunk's first runs, for each statistic of the lane's packs.
    template <class Source>
    FASTNORM_DEVICE void first_mean(const Block& block, const Chunk& lane, const Source& source,
                                    A (&means)[width]) const {
        lane.first([&](const Position& at, int elements) {
            const Pack<T> x = source.pack(args.x, x_array, 0, at, elements);
#pragma unroll
            for (int e = 0; e < width; ++e) means[e] = widen(x.element[e]);
        });
        sum_of_lanes(block, args.rows, means);
        const std::int64_t rest = args.rows.runs - lane.chunk() * (packs * args.rows.lanes);
        const auto runs = static_cast<A>(rest < args.rows.lanes ? rest : args.rows.lanes);
#pragma unroll
        for (int e = 0; e < width; ++e) {
            means[e] /= runs;
            if (!is_finite(means[e])) means[e] = A(0);
        }
    }

    // The own statistic's moments, and whether they can be trusted.
    struct Sums {
        Partial partial;
        bool good;
    };

    // From sums about pivots. each_pack(f) calls f(pack, elements).
    template <class D, class EachPack>
    FASTNORM_DEVICE Sums about(const Block& block, const D (&pivots)[width], double count,
                               double share, EachPack&& each_pack) const {
        D first[sum_count] = {}, second[sum_count] = {};
        each_pack([&](const Pack<T>& x, int elements) {
#pragma unroll
            for (int e = 0; e < values; ++e) {
                const D pivot = pivots[width > 1 ? e : 0];
                const D d = e < elements ? static_cast<D>(widen(x.element[e])) - pivot : D(0);
                first[e % sum_count] += d;
                second[e % sum_count] = fma(d, d, second[e % sum_count]);
            }
        });
        D sums[width], square_sums[width];
        fold(first, sums);
        fold(second, square_sums);
        const auto origin = static_cast<double>(own_value(block, pivots));
        const auto sum = static_cast<double>(own_sum(block, args.rows, sums));
        const auto square_sum = static_cast<double>(own_sum(block, args.rows, square_sums));
        if constexpr (features) {
            if (!args.centred) return {{0.0, square_sum}, in_range<D>(count, square_sum)};
        }
        const Moments m = moments_about(origin, count, sum * share, sum, square_sum);
        return {{m.mean, m.m2}, trustworthy<D>(m, origin, sum, square_sum)};
    }

    // origins: what numbers are taken relative to while their mean is not known.
    template <class D, class EachPack>
    FASTNORM_DEVICE Sums about_own_mean(const Block& block, const D (&origins)[width], double count,
                                        double share, EachPack&& each_pack) const {
        D sums[sum_count] = {}, means[width] = {};
        if (features && !args.centred) return about(block, means, count, share, each_pack);
        each_pack([&](const Pack<T>& x, int elements) {
#pragma unroll
            for (int e = 0; e < values; ++e) {
                const D d = static_cast<D>(widen(x.element[e])) - origins[width > 1 ? e : 0];
                sums[e % sum_count] += e < elements ? d : D(0);
            }
        });
        fold(sums, means);
        sum_of_lanes(block, args.rows, means);
#pragma unroll
        for (int e = 0; e < width; ++e) {
            means[e] = origins[e] + means[e] * static_cast<D>(share);
            if (!is_finite(means[e])) means[e] = D(0);
        }
        return about(block, means, count, share, each_pack);
    }

    // Off the hot path: in double, relative to each statistic's first number, so that the mean of
    // equal numbers is that number, even if their sum would overflow.
    template <class EachPack>
    FASTNORM_DEVICE Sums about_exact_mean(const Block& block, double count, double share,
                                          EachPack&& each_pack) const {
        double first[width] = {};
        bool found = block.lane() >= (width > 1 ? args.rows.across : 1);
        each_pack([&](const Pack<T>& x, int elements) {
            if (found || elements == 0) return;
            found = true;
#pragma unroll
            for (int e = 0; e < width; ++e) {
                first[e] = static_cast<double>(widen(x.element[e]));
                if (!is_finite(first[e])) first[e] = 0;
            }
        });
        sum_of_lanes(block, args.rows, first);
        return about_own_mean(block, first, count, share, each_pack);
    }
};

}  // namespace fastnorm::cuda
