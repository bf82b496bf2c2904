#include "cuda/features.h"

#include <algorithm>

#include "core/stats.h"
#include "cuda/block.h"
#include "cuda/elements.h"
#include "cuda/rows.h"

namespace fastnorm::cuda {

namespace {

// values + offset in the accumulator type.
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

// The same divided by a power of two above them all. One block: all wait for the largest.
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
        const double unit = scale_above<A>(largest);
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
            store_pack<T, whole>(block, at(to), elements, sum_of_packs(of_a, of_b));
        });
    }
};

void widen(const Execution& execution, DType dtype, const PerStatistic& values, std::int64_t count,
           double offset, char* to) {
    with_dtype(dtype, [&](auto element) {
        using A = accumulator_t<decltype(element)>;
        launch(execution.op, Widen<A>{values, count, offset, reinterpret_cast<A*>(to)},
               shape_for(count), execution.stream);
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

constexpr std::int64_t bytes_of_scale = 16;

std::int64_t bytes_of_array(DType dtype, std::int64_t count) {
    return divide_up(count * (dtype == DType::float64 ? 8 : 4), 16) * 16;
}

// Whether values lie as kernels read them.
bool are_dense(const PerStatistic& values, DType dtype) {
    return !values || (values.dtype == dtype && values.stride == size_of(dtype) &&
                       reinterpret_cast<std::uintptr_t>(values.data) % 16 == 0);
}

}  // namespace

FeatureParameters::FeatureParameters(const Problem& problem, Direction direction, Arguments& args)
    : dtype_(problem.dtype),
      direction_(direction),
      weights_(problem.weight),
      count_(args.rows.inner),
      offset_(problem.weight_offset) {
    const bool forward = direction == Direction::forward;
    const DType wide = dtype_ == DType::float64 ? DType::float64 : DType::float32;
    if (forward || recomputes_z(args)) biases_ = problem.bias;
    // Kernels add an offset where the sum is rounded as a conversion would round it: in double, or
    // of a float and a number of few digits.
    const bool adds = !weights_ || weights_.dtype == DType::float64 ||
                      (weights_.dtype != DType::float32 && static_cast<float>(offset_) == offset_);
    const bool as_they_are = forward && (offset_ == 0 || adds);
    args.weights = weights_.data;
    args.biases = biases_.data;
    args.weight_offset = offset_;
    args.wide_parameters =
        !as_they_are || !are_dense(weights_, dtype_) || !are_dense(biases_, dtype_);
    // Backward's weights are scaled.
    converts_weights_ = weights_ && args.wide_parameters &&
                        (!forward || offset_ != 0 || !are_dense(weights_, wide));
    converts_biases_ = biases_ && args.wide_parameters && !are_dense(biases_, wide);
}

std::int64_t FeatureParameters::bytes() const {
    return (converts_weights_ + converts_biases_) * bytes_of_array(dtype_, count_) +
           (converts_weights_ ? bytes_of_scale : 0);
}

void FeatureParameters::convert(const Execution& execution, char* memory, Arguments& args,
                                const Step& step) const {
    if (converts_weights_) {
        char* const to = memory + bytes_of_scale;
        if (direction_ == Direction::forward) {
            step("widen: a thread for each weight",
                 [&] { widen(execution, dtype_, weights_, count_, offset_, to); });
        } else {
            auto* const scale = reinterpret_cast<double*>(memory);
            step("widen_and_scale: a block",
                 [&] { widen_and_scale(execution, dtype_, weights_, count_, offset_, to, scale); });
            args.weights_scale = scale;
        }
        args.weights = to;
        args.weight_offset = 0;
        memory = to + bytes_of_array(dtype_, count_);
    }
    if (converts_biases_) {
        step("widen: a thread for each bias",
             [&] { widen(execution, dtype_, biases_, count_, 0.0, memory); });
        args.biases = memory;
    }
}

void add_rows(const Execution& execution, DType dtype, const Rows& rows, bool whole,
              const Operand& a, const Operand& b, const Operand& to) {
    const Shape shape = shape_for(rows.stats * rows.packs);
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
