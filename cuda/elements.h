// Kernels for what is off the hot path: a copy between tensors of any strides, a value for all of a
// vector, rstd from variances.
#pragma once

#include "core/per_statistic.h"
#include "core/stats.h"
#include "core/view.h"
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

}  // namespace fastnorm::cuda
