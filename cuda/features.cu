#include "cuda/features.h"

#include <algorithm>

#include "core/stats.h"
#include "cuda/block.h"
#include "cuda/elements.h"
#include "cuda/rows.h"

namespace fastnorm::cuda {

namespace {

Shape shape_for(std::int64_t count, int threads) {
    constexpr std::int64_t most_blocks = 4096;
    Shape shape;
    shape.threads = threads;
    shape.blocks = std::min(divide_up(count, threads), most_blocks);
    return shape;
}

template <class A>
struct Widen {
    static constexpr const char* name = "widen";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = 1;

    PerStatistic from;
    std::int64_t count;
    double offset;
    A* to;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        for_elements(block, count,
                     [&](std::int64_t i) { to[i] = narrowed<A>(from.get(i) + offset); });
    }
};

// One block: all wait for the largest.
template <class A>
struct WidenAndScale {
    static constexpr const char* name = "widen_and_scale";
    static constexpr int most_threads = 512;
    static constexpr int least_blocks = 1;

    PerStatistic from;
    std::int64_t count;
    double offset;
    A* to;
    double* scale;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        auto* const of_warps = reinterpret_cast<double*>(block.shared());
        double largest = 0;
        for_elements(block, count, [&](std::int64_t i) {
            largest = larger(largest, magnitude(from.get(i) + offset));
        });
        for (int mask = warp_size / 2; mask > 0; mask /= 2) {
            largest = larger(largest, block.exchange(largest, mask));
        }
        if (block.lane() == 0) of_warps[block.warp()] = largest;
        block.sync();
        for (int w = 0; w < block.warps(); ++w) largest = larger(largest, of_warps[w]);
        const double unit = largest > 0 ? power_of_two<A>(exponent_of(largest) + 1) : 1.0;
        for_elements(block, count,
                     [&](std::int64_t i) { to[i] = narrowed<A>((from.get(i) + offset) / unit); });
        if (block.thread() == 0) *scale = unit;
    }

  private:
    FASTNORM_DEVICE static double larger(double a, double b) { return b > a ? b : a; }
};

template <class T, bool whole>
struct AddRows {
    static constexpr const char* name = "add";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = 1;
    static constexpr int values = pack_elements<T>;

    Rows rows;
    Operand a, b, to;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        for_elements(block, rows.stats * rows.packs, [&](std::int64_t i) {
            const std::int64_t row = i / rows.packs, pack = i - row * rows.packs;
            const auto at = [&](const Operand& operand) {
                return operand.data + offset_of<false>(rows, operand, row, 0) + pack * 16;
            };
            const std::int64_t rest = rows.inner - pack * values;
            const int elements = rest < values ? static_cast<int>(rest) : values;
            const Pack<T> of_a = load_pack<T, whole>(block, at(a), elements, Reuse::none);
            const Pack<T> of_b = load_pack<T, whole>(block, at(b), elements, Reuse::none);
            Pack<T> sum;
#pragma unroll
            for (int e = 0; e < values; ++e) {
                narrow(widen(of_a.element[e]) + widen(of_b.element[e]), sum.element[e]);
            }
            store_pack<T, whole>(block, at(to), elements, sum);
        });
    }
};

}  // namespace

void widen(const Execution& execution, DType dtype, const PerStatistic& values, std::int64_t count,
           double offset, char* to) {
    const Shape shape = shape_for(count, 256);
    with_dtype(dtype, [&](auto element) {
        using A = accumulator_t<decltype(element)>;
        launch(execution.op, Widen<A>{values, count, offset, reinterpret_cast<A*>(to)}, shape,
               execution.stream);
    });
}

void widen_and_scale(const Execution& execution, DType dtype, const PerStatistic& values,
                     std::int64_t count, double offset, char* to, double* scale) {
    Shape shape;
    shape.blocks = 1;
    shape.threads = 512;
    shape.shared_bytes = 512 / warp_size * static_cast<std::int64_t>(sizeof(double));
    with_dtype(dtype, [&](auto element) {
        using A = accumulator_t<decltype(element)>;
        launch(execution.op,
               WidenAndScale<A>{values, count, offset, reinterpret_cast<A*>(to), scale}, shape,
               execution.stream);
    });
}

void add_rows(const Execution& execution, DType dtype, const Rows& rows, bool whole,
              const Operand& a, const Operand& b, const Operand& to) {
    const Shape shape = shape_for(rows.stats * rows.packs, 256);
    with_dtype(dtype, [&](auto element) {
        using T = decltype(element);
        if (whole) {
            launch(execution.op, AddRows<T, true>{rows, a, b, to}, shape, execution.stream);
        } else {
            launch(execution.op, AddRows<T, false>{rows, a, b, to}, shape, execution.stream);
        }
    });
}

}  // namespace fastnorm::cuda
