// From partial results to statistics, and from those to the coefficients of the maps. A part's
// chunks are added up in order. Of the L lanes that merge a statistic's parts, part q belongs to
// lane q % L; a lane adds up its parts in order, and the lanes' sums meet in a butterfly: an order
// that follows from the shape alone.
#pragma once

#include "core/stats.h"
#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/scalar.h"

#include "core/maps.h"

namespace fastnorm::cuda {

// The sum of the values of so many neighbouring lanes, a power of two, the same in each.
template <class A>
FASTNORM_DEVICE A sum_of_neighbours(const Block& block, int lanes, A value) {
    for (int mask = lanes / 2; mask > 0; mask /= 2) value += block.exchange(value, mask);
    return value;
}
// That of all lanes.
template <class A>
FASTNORM_DEVICE A sum_of_warp(const Block& block, A value) {
    return sum_of_neighbours(block, warp_size, value);
}

// The sums over all lanes that share statistics, `width` of them, the same in each.
template <int width, class A>
FASTNORM_DEVICE void sum_of_lanes(const Block& block, const Rows& rows, A (&values)[width]) {
#pragma unroll
    for (int mask = warp_size / 2; mask > 0; mask /= 2) {
        if (width > 1 && mask < rows.across) break;
#pragma unroll
        for (int e = 0; e < width; ++e) values[e] += block.exchange(values[e], mask);
    }
}

// Of a group's statistics each lane has one of its own, perhaps as its neighbours do: which of its
// `width`, which of the group's, and whether it is the one of those lanes to speak for it.
template <int width>
FASTNORM_DEVICE int own_element(const Block& block) {
    return block.lane() / (warp_size / width);
}
template <int width>
FASTNORM_DEVICE int own_stat(const Block& block, const Rows& rows) {
    if constexpr (width == 1) return 0;
    return block.lane() % rows.across * width + own_element<width>(block);
}
template <int width>
FASTNORM_DEVICE bool owns_stat(const Block& block, const Rows& rows) {
    return block.lane() % (warp_size / width) < (width > 1 ? rows.across : 1);
}

// Of `width` values that of the own statistic.
template <int width, class A>
FASTNORM_DEVICE A own_value(const Block& block, const A (&values)[width]) {
    A left[width];
#pragma unroll
    for (int e = 0; e < width; ++e) left[e] = values[e];
#pragma unroll
    for (int half = width / 2, mask = warp_size / 2; half > 0; half /= 2, mask /= 2) {
        const bool upper = (block.lane() & mask) != 0;
#pragma unroll
        for (int e = 0; e < half; ++e) left[e] = upper ? left[e + half] : left[e];
    }
    return left[0];
}

// The sum over all lanes that share the own statistic: with each exchange a lane gives up half of
// the values, until one is left. The same bits as those of sum_of_lanes().
template <int width, class A>
FASTNORM_DEVICE A own_sum(const Block& block, const Rows& rows, const A (&values)[width]) {
    A left[width];
#pragma unroll
    for (int e = 0; e < width; ++e) left[e] = values[e];
    int mask = warp_size / 2;
#pragma unroll
    for (int half = width / 2; half > 0; half /= 2, mask /= 2) {
        const bool upper = (block.lane() & mask) != 0;
#pragma unroll
        for (int e = 0; e < half; ++e) {
            const A sent = upper ? left[e] : left[e + half];
            left[e] = (upper ? left[e + half] : left[e]) + block.exchange(sent, mask);
        }
    }
#pragma unroll
    for (; mask > 0; mask /= 2) {
        if (width > 1 && mask < rows.across) break;
        left[0] += block.exchange(left[0], mask);
    }
    return left[0];
}

// Sums that a lane keeps, as registers are few: one for each of its statistics, or some for one.
template <class T, int width>
inline constexpr int sums_of_lane = width > 1              ? width
                                    : pack_elements<T> > 4 ? 4
                                                           : pack_elements<T>;

// The sum of values that one lane has.
template <int count, class A>
FASTNORM_DEVICE A sum_of(const A (&values)[count]) {
    A folded[count];
#pragma unroll
    for (int i = 0; i < count; ++i) folded[i] = values[i];
#pragma unroll
    for (int half = count / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) folded[i] += folded[i + half];
    }
    return folded[0];
}

// Calls use(part, partial(part)) for the lane's parts, in order; a few of them are on their way
// together.
template <class PartialOf, class Use>
FASTNORM_DEVICE void for_partials_of_lane(const Block& block, int lanes, std::int64_t parts,
                                          PartialOf&& partial, Use&& use) {
    constexpr int together = 4;
#pragma unroll 1
    for (std::int64_t q = block.lane() % lanes; q < parts; q += together * lanes) {
        Partial found[together];
#pragma unroll
        for (int i = 0; i < together; ++i) {
            if (q + i * lanes < parts) found[i] = partial(q + i * lanes);
        }
#pragma unroll
        for (int i = 0; i < together; ++i) {
            if (q + i * lanes < parts) use(q + i * lanes, found[i]);
        }
    }
}

// The moments of any number of sets: Chan, Golub and LeVeque's merge about a mean that one of them
// has. As that lies no further from the whole's mean than sqrt(sets) standard deviations, double
// has digits to spare.
struct MomentsOfSets {
    double origin, sum = 0, square_sum = 0;

    FASTNORM_DEVICE explicit MomentsOfSets(const Partial& some)
        : origin(is_finite(some.first) ? some.first : 0.0) {}
    FASTNORM_DEVICE void add(const Partial& of, double count_of) {
        const double delta = of.first - origin;
        const double weighted = delta * count_of;
        sum += weighted;
        square_sum += fma(weighted, delta, of.second);
    }
    // Of so many values in all.
    FASTNORM_DEVICE Partial together(double count) const {
        const Moments m = moments_about(origin, count, sum / count, sum, square_sum);
        return {m.mean, m.m2};
    }
};

// The same interface for sums.
struct SumsOfSets {
    Partial sums{0, 0};

    FASTNORM_DEVICE explicit SumsOfSets(const Partial&) {}
    FASTNORM_DEVICE void add(const Partial& of, double) {
        sums.first += of.first;
        sums.second += of.second;
    }
    FASTNORM_DEVICE Partial together(double) const { return sums; }
};

// A statistic's moments from those of its parts, partial(q) each of count_of(q) values. Of no parts
// they are anything.
template <class PartialOf, class CountOf>
FASTNORM_DEVICE Partial merged_moments(const Block& block, int lanes, std::int64_t parts,
                                       double count, PartialOf&& partial, CountOf&& count_of) {
    MomentsOfSets of_lane(parts > 0 ? partial(0) : Partial{0, 0});
    for_partials_of_lane(block, lanes, parts, partial, [&](std::int64_t part, const Partial& of) {
        of_lane.add(of, count_of(part));
    });
    of_lane.sum = sum_of_neighbours(block, lanes, of_lane.sum);
    of_lane.square_sum = sum_of_neighbours(block, lanes, of_lane.square_sum);
    return of_lane.together(count);
}

template <class PartialOf>
FASTNORM_DEVICE Partial merged_sums(const Block& block, int lanes, std::int64_t parts,
                                    PartialOf&& partial) {
    SumsOfSets of_lane({});
    for_partials_of_lane(block, lanes, parts, partial,
                         [&](std::int64_t, const Partial& of) { of_lane.add(of, 0); });
    return {sum_of_neighbours(block, lanes, of_lane.sums.first),
            sum_of_neighbours(block, lanes, of_lane.sums.second)};
}

// What statistics that share a mean make together, the first of them `first`: from total(i), which
// is what its i-th one's parts have made.
template <class Total>
FASTNORM_DEVICE OfMean moments_of_mean(const Block& block, const Rows& rows, Total&& total) {
    const Moments m = merge_equal(
        total(0).first, static_cast<double>(rows.stats_of_mean), static_cast<double>(rows.elements),
        [&](auto&& use) {
            for (std::int64_t i = block.lane(); i < rows.stats_of_mean; i += warp_size) {
                const Partial moments = total(i);
                use(moments.first, moments.second);
            }
        },
        [&](double of_lane) { return sum_of_warp(block, of_lane); });
    return {{m.mean, m.m2}, 1.0};
}

// Of weight * g: relative to a power of two near the largest weight, as that may be anything.
template <class Total>
FASTNORM_DEVICE OfMean sums_of_mean(const Block& block, const Arguments& args, std::int64_t first,
                                    Total&& total) {
    const Rows& rows = args.rows;
    const auto weight = [&](std::int64_t i) {
        return args.weight.get((first + i) % rows.stat, 1.0);
    };
    double largest = 0;
    for (std::int64_t i = block.lane(); i < rows.stats_of_mean; i += warp_size) {
        const double size = magnitude(weight(i));
        largest = size > largest ? size : largest;
    }
    for (int mask = warp_size / 2; mask > 0; mask /= 2) {
        const double other = block.exchange(largest, mask);
        largest = other > largest ? other : largest;
    }
    const double unit = power_of_two<double>(exponent_of(largest));
    const Partial merged =
        merged_sums(block, warp_size, rows.stats_of_mean, [&](std::int64_t i) -> Partial {
            const double share = weight(i) / unit;
            const Partial sums = total(i);
            return {share * sums.first, share * sums.second};
        });
    return {merged, unit};
}

FASTNORM_DEVICE void publish(const Block& block, Partial* to, const Partial& partial) {
    block.publish(&to->first, partial.first);
    block.publish(&to->second, partial.second);
}
FASTNORM_DEVICE Partial fresh(const Block& block, const Partial* from) {
    return {block.fresh(&from->first), block.fresh(&from->second)};
}

// What the maps need of one statistic: see core/maps.h.
template <class A>
struct Coefficients {
    Normalization<A> z;
    A grad_a, grad_b, grad_c, grad_scale;  // backward alone
};

template <class A>
FASTNORM_DEVICE NormalizeMap<A> normalize_map(const Coefficients<A>& of) {
    return {of.z.prescale, of.z.mean_hi, of.z.mean_lo, of.z.scale, of.z.bias};
}

template <class A>
FASTNORM_DEVICE void set_forward(Coefficients<A>& to, const Arguments& args, std::int64_t stat,
                                 double mean, double rstd, double prescale) {
    to.z = normalization<A>(mean, rstd, args.weight_of(stat), args.bias.get(stat % args.rows.stat),
                            prescale);
}

template <class A>
FASTNORM_DEVICE void set_backward_z(Coefficients<A>& to, const Arguments& args, std::int64_t stat) {
    const std::int64_t index = args.mean_of(stat);
    const double mean = args.mean.get(index), rstd = args.rstd_or_var.get(index);
    to.z = normalization<A>(mean, rstd, args.weight_of(stat), args.bias.get(stat % args.rows.stat),
                            backward_prescale<A>(mean, rstd));
}

template <class A>
FASTNORM_DEVICE void set_backward_dx(Coefficients<A>& to, const Arguments& args, std::int64_t stat,
                                     const OfMean& of) {
    const std::int64_t index = args.mean_of(stat);
    const double mean = args.mean.get(index), rstd = args.rstd_or_var.get(index);
    const double weight = args.weight_of(stat);
    const GradientCoefficients g = gradient_coefficients(
        rstd, weight, of.weight_of_sums, args.values_of_mean(), of.together.first,
        of.together.second, backward_prescale<A>(mean, rstd), halfway_scale<A>(rstd, weight));
    to.grad_a = narrowed<A>(g.a);
    to.grad_b = narrowed<A>(g.b);
    to.grad_c = narrowed<A>(g.c);
    to.grad_scale = narrowed<A>(g.scale);
}

}  // namespace fastnorm::cuda
