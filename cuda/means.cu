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

template <Direction direction>
struct MergeTotals {
    static constexpr const char* name = "means";
    static constexpr int most_threads = warps * warp_size;
    static constexpr int least_blocks = 1;

    Arguments args;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        for_means(block, args.rows, [&](std::int64_t mean, std::int64_t first) {
            const auto total = [&](std::int64_t i) { return args.totals[first + i]; };
            OfMean of;
            if constexpr (direction == Direction::forward) {
                of = moments_of_mean(block, args.rows, total);
            } else {
                of = sums_of_mean(block, args, first, total);
            }
            if (block.lane() == 0) args.of_means[mean] = of;
        });
    }
};

}  // namespace

void merge_totals(const Execution& execution, const Arguments& args, Direction direction) {
    const std::int64_t means = args.rows.stats / args.rows.stats_of_mean;
    const Shape shape = shape_for(means * warp_size, warps * warp_size);
    if (direction == Direction::forward) {
        launch(execution.op, MergeTotals<Direction::forward>{args}, shape, execution.stream);
    } else {
        launch(execution.op, MergeTotals<Direction::backward>{args}, shape, execution.stream);
    }
}

}  // namespace fastnorm::cuda
