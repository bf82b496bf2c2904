// The kernels alone, one thread: every kernel on every instruction set and traversal, with data
// that lie in L1, L2, L3 or memory. bytes_per_second counts what the kernel reads and writes, once.
//
//   kernels_bench --benchmark_filter='normalize/rows/float32/.*/avx512'
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "core/dtypes.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"

namespace {

using namespace fastnorm;

struct Place {
    const char* name;
    std::int64_t bytes;  // of all tensors together
};
constexpr Place places[] = {
    {"L1", 24 << 10}, {"L2", 768 << 10}, {"L3", 12 << 20}, {"memory", 384 << 20}};

struct Shape {
    const char* name;
    Traversal traversal;
    std::int64_t stat, inner;
};
// A layer of ResNet-50 in NCHW; its small planes; the same layer in NHWC.
constexpr Shape shapes[] = {{"rows", Traversal::rows, 2, 3136},
                            {"small_rows", Traversal::rows, 64, 49},
                            {"columns", Traversal::columns, 256, 1},
                            {"narrow_columns", Traversal::columns, 24, 1}};

struct Kind {
    const char* name;
    int tensors;
    bool stream;
};
constexpr Kind kinds[] = {{"moments", 1, false},           {"normalize", 2, false},
                          {"normalize_streamed", 2, true}, {"gradient_sums", 2, false},
                          {"gradient", 3, false},          {"gradient_streamed", 3, true}};

// Tensors side by side in one block of memory; coefficients of 0 will do for their time.
struct Data {
    static constexpr std::int64_t alignment = 64;
    KernelArgs args;
    Plan plan;
    std::vector<char> coefficients;
    std::vector<double> partials;
    char* memory;

    Data(const Shape& shape, DType dtype, std::int64_t tensors, std::int64_t bytes) {
        const std::int64_t size = size_of(dtype);
        View& view = args.view;
        view.traversal = shape.traversal;
        view.stat = shape.stat;
        view.inner = shape.inner;
        const std::int64_t row_bytes = shape.stat * shape.inner * size;
        view.outer = std::max<std::int64_t>(bytes / tensors / row_bytes, 1);
        view.outer_extent[0] = view.outer;
        const std::int64_t tensor_bytes =
            divide_up(view.outer * row_bytes, alignment) * alignment + alignment;
        memory = static_cast<char*>(::operator new(static_cast<std::size_t>(3 * tensor_bytes),
                                                   std::align_val_t{alignment}));
        // Numbers like any others: constant ones are a case of their own for the statistics.
        std::mt19937 random(1);
        std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
        with_dtype(dtype, [&](auto element) {
            for (std::int64_t i = 0; i < 3 * tensor_bytes / size; ++i) {
                from_float(uniform(random), element);
                std::memcpy(memory + i * size, &element, sizeof(element));
            }
        });
        Operand* const operands[] = {&args.x, &args.dy, &args.y};
        for (int i = 0; i < 3; ++i) {
            operands[i]->data = memory + i * tensor_bytes;
            operands[i]->stat_stride = shape.inner * size;
            operands[i]->outer_stride[0] = row_bytes;
        }
        args.dx = args.y;
        args.coefficients_stride = view.coefficients();
        coefficients.resize(
            static_cast<std::size_t>(backward_coefficients * args.coefficients_stride * 8));
        args.coefficients = coefficients.data();
        plan = reduction_plan(view, size, 1, 1);
        partials.resize(static_cast<std::size_t>(2 * view.stats()));
    }
    ~Data() { ::operator delete(memory, std::align_val_t{alignment}); }
    Data(const Data&) = delete;
    Data& operator=(const Data&) = delete;
};

void run(benchmark::State& state, const KernelTable& table, const Kind& kind, const Shape& shape,
         DType dtype, std::int64_t bytes) {
    Data data(shape, dtype, kind.tensors, bytes);
    data.args.stream = kind.stream;
    const TraversalKernels& of = *table.of[static_cast<int>(shape.traversal)];
    const int d = static_cast<int>(dtype);
    const std::string name = kind.name;
    double* const first = data.partials.data();
    double* const second = first + data.args.view.stats();
    const auto each_tile = [&](auto&& call) {
        for (auto _ : state) {
            for (std::int64_t unit = 0; unit < data.plan.units(); ++unit) {
                for (std::int64_t c = 0; c < data.plan.chunks(); ++c) call(data.plan.unit(unit, c));
            }
            benchmark::ClobberMemory();
        }
    };
    const auto reduce = [&](Reduction kernel) {
        each_tile([&](const Tile& tile) { kernel(data.args, tile, first, second); });
    };
    const auto map = [&](Map kernel) {
        each_tile([&](const Tile& tile) { kernel(data.args, tile); });
    };
    if (name == "moments") reduce(of.moments[d]);
    if (name == "gradient_sums") reduce(of.gradient_sums[d][0]);
    if (name.rfind("normalize", 0) == 0) map(of.normalize[d][0]);
    if (name.rfind("gradient", 0) == 0 && name != "gradient_sums") map(of.gradient[d][0]);
    state.SetBytesProcessed(state.iterations() * kind.tensors * data.args.view.elements() *
                            size_of(dtype));
}

}  // namespace

int main(int count, char** arguments) {
    for (const std::string& isa : available_isas()) {
        activate_isa(isa);
        const KernelTable& table = active_kernels();
        for (const Kind& kind : kinds) {
            for (const Shape& shape : shapes) {
                for (const DType dtype : {DType::float32, DType::bfloat16}) {
                    for (const Place& place : places) {
                        const std::string name = std::string(kind.name) + "/" + shape.name + "/" +
                                                 name_of(dtype) + "/" + place.name + "/" + isa;
                        benchmark::RegisterBenchmark(
                            name.c_str(), [&, dtype](benchmark::State& state) {
                                run(state, table, kind, shape, dtype, place.bytes);
                            });
                    }
                }
            }
        }
    }
    benchmark::Initialize(&count, arguments);
    if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
