#include "cuda/means.h"

#include "cuda/block.h"
#include "cuda/elements.h"
#include "cuda/statistics.h"

namespace fastnorm::cuda {

namespace {

// A warp has a mean at a time.
constexpr int warps = 4;

// Calls f(mean, its first statistic) for the means of the warp.
template <class F>
FASTNORM_DEVICE void for_means(const Block& block, const Rows& rows, F&& f) {
    const std::int64_t means = rows.stats / rows.stats_of_mean;
    const std::int64_t step = block.blocks() * block.warps();
    for (std::int64_t m = block.index() * block.warps() + block.warp(); m < means; m += step) {
        f(m, m * rows.stats_of_mean);
    }
}

struct MergeMoments {
    static constexpr const char* name = "means";
    static constexpr int most_threads = warps * warp_size;
    static constexpr int least_blocks = 1;

    Arguments args;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const auto sets = static_cast<double>(rows.stats_of_mean);
        const auto each = static_cast<double>(rows.elements);
        for_means(block, rows, [&](std::int64_t mean, std::int64_t first) {
            const Moments m = merge_equal(
                args.totals[first].first, sets, each,
                [&](auto&& use) {
                    for (std::int64_t i = block.lane(); i < rows.stats_of_mean; i += warp_size) {
                        use(args.totals[first + i].first, args.totals[first + i].second);
                    }
                },
                [&](double of_lane) { return sum_of_warp(block, of_lane); });
            if (block.lane() == 0) args.of_means[mean] = {{m.mean, m.m2}, 1.0};
        });
    }
};

// Of weight * g: relative to a power of two near the largest weight, as that may be anything.
struct MergeSums {
    static constexpr const char* name = "means";
    static constexpr int most_threads = warps * warp_size;
    static constexpr int least_blocks = 1;

    Arguments args;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        for_means(block, rows, [&](std::int64_t mean, std::int64_t first) {
            const Partial* const totals = args.totals + first;
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
                merged_sums(block, rows.stats_of_mean, [&](std::int64_t i) -> Partial {
                    const double share = weight(i) / unit;
                    return {share * totals[i].first, share * totals[i].second};
                });
            if (block.lane() == 0) args.of_means[mean] = {merged, unit};
        });
    }
};

}  // namespace

void merge_totals(const Execution& execution, const Arguments& args, Direction direction) {
    const std::int64_t means = args.rows.stats / args.rows.stats_of_mean;
    const Shape shape = shape_for(means * warp_size, warps * warp_size);
    if (direction == Direction::forward) {
        launch(execution.op, MergeMoments{args}, shape, execution.stream);
    } else {
        launch(execution.op, MergeSums{args}, shape, execution.stream);
    }
}

}  // namespace fastnorm::cuda
