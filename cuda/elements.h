// Kernels for what is off the hot path: a copy between tensors of any strides, a value for all of a
// vector, rstd from variances, sums of addends.
#pragma once

#include <algorithm>

#include "core/per_statistic.h"
#include "core/stats.h"
#include "core/view.h"
#include "cuda/addends.h"
#include "cuda/block.h"

namespace fastnorm::cuda {

// Calls f(i) for every i of the grid's share of [0, count).
template <class F>
FASTNORM_DEVICE void for_elements(const Block& block, std::int64_t count, F&& f) {
    const std::int64_t step = block.blocks() * block.threads();
    for (std::int64_t i = block.index() * block.threads() + block.thread(); i < count; i += step) {
        f(i);
    }
}

// Of elements of one size, as unsigned integers. Strides are in bytes.
template <class Unsigned>
struct Copy {
    static constexpr const char* name = "copy";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = 1;

    char* to;
    const char* from;
    std::int64_t elements;
    int dims;
    std::int64_t extent[max_dims], to_stride[max_dims], from_stride[max_dims];

    FASTNORM_DEVICE void operator()(const Block& block) const {
        for_elements(block, elements, [&](std::int64_t i) {
            std::int64_t target = 0, source = 0;
            for (int d = dims - 1; d >= 0; --d) {
                const std::int64_t index = i % extent[d];
                i /= extent[d];
                target += index * to_stride[d];
                source += index * from_stride[d];
            }
            block.store_element(
                reinterpret_cast<Unsigned*>(to + target),
                block.load_element(reinterpret_cast<const Unsigned*>(from + source)));
        });
    }
};

inline Shape shape_for(std::int64_t count, int threads = 256) {
    constexpr std::int64_t most_blocks = 4096;
    Shape shape;
    shape.threads = threads;
    shape.blocks = std::min(divide_up(count, threads), most_blocks);
    return shape;
}

struct Fill {
    static constexpr const char* name = "fill";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = 1;

    PerStatistic to;
    std::int64_t count;
    double value;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        for_elements(block, count, [&](std::int64_t i) { to.set(i, value); });
    }
};

struct Rstd {
    static constexpr const char* name = "rstd";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = 1;

    PerStatistic to, var;
    std::int64_t count;
    double eps;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        for_elements(block, count,
                     [&](std::int64_t i) { to.set(i, rstd_of_variance(var.get(i), eps)); });
    }
};

// Sums over sets: a block has 32 neighbouring parameters at a time, and its warps some consecutive
// sets each, whose sums are added in the warps' order.
inline constexpr int warps_of_sums = 8;

inline Shape shape_for(const Addends& of) {
    Shape shape = shape_for(of.parameters * warps_of_sums, warps_of_sums * warp_size);
    shape.shared_bytes = warps_of_sums * warp_size * std::int64_t{sizeof(Partial)};
    return shape;
}

// Calls f(parameter, the sum over all sets).
template <class F>
FASTNORM_DEVICE void for_sums_of_sets(const Block& block, const Addends& of, F&& f) {
    auto* const of_warps = reinterpret_cast<Partial*>(block.shared());
    const std::int64_t stripes = divide_up(of.parameters, warp_size);
    const std::int64_t sets_of_warp = divide_up(of.sets, warps_of_sums);
    const std::int64_t first = block.warp() * sets_of_warp;
    const std::int64_t end = first + sets_of_warp < of.sets ? first + sets_of_warp : of.sets;
    for (std::int64_t stripe = block.index(); stripe < stripes; stripe += block.blocks()) {
        const std::int64_t parameter = stripe * warp_size + block.lane();
        Partial sum{0, 0};
        if (parameter < of.parameters) {
#pragma unroll 8
            for (std::int64_t n = first; n < end; ++n) {
                const Partial* const from = of.values + n * of.parameters + parameter;
                sum.first += block.load_element(&from->first);
                sum.second += block.load_element(&from->second);
            }
        }
        of_warps[block.thread()] = sum;
        block.sync();
        if (block.warp() == 0 && parameter < of.parameters) {
            for (int warp = 1; warp < warps_of_sums; ++warp) {
                sum.first += of_warps[warp * warp_size + block.lane()].first;
                sum.second += of_warps[warp * warp_size + block.lane()].second;
            }
            f(parameter, sum);
        }
        block.sync();
    }
}

struct Gradients {
    static constexpr const char* name = "gradients";
    static constexpr int most_threads = warps_of_sums * warp_size;
    static constexpr int least_blocks = 1;

    Addends of;
    PerStatistic dweight, dbias;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        for_sums_of_sets(block, of, [&](std::int64_t c, const Partial& sum) {
            dbias.set(c, sum.first);
            dweight.set(c, sum.second);
        });
    }
};

struct Running {
    static constexpr const char* name = "running";
    static constexpr int most_threads = warps_of_sums * warp_size;
    static constexpr int least_blocks = 1;

    Addends of;
    double values;
    PerStatistic mean, var;
    double momentum;
    bool unbiased;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const auto sets = static_cast<double>(of.sets);
        for_sums_of_sets(block, of, [&](std::int64_t c, const Partial& sum) {
            const double batch_var = batch_variance(sum.second / sets, values, unbiased);
            mean.set(c, running_update(mean.get(c), sum.first / sets, momentum));
            var.set(c, running_update(var.get(c), batch_var, momentum));
        });
    }
};

}  // namespace fastnorm::cuda
