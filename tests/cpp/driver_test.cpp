// What the driver promises beyond batch norm's own use of it: views with a batch, whose parameters
// repeat (instance norm: each image by its own statistics), and an embedder's memory and threads.
#include "cpu/driver.h"

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"
#include "expect.h"
#include "fastnorm/fastnorm.hpp"

namespace {

using fastnorm::TensorView;

constexpr std::int64_t images = 4;
constexpr std::int64_t channels = 37;
constexpr double eps = 1e-3;

float sample(std::int64_t i) { return static_cast<float>((i * 37 + i * i * 11) % 61 - 27) / 8; }

template <class T>
fastnorm::PerStatistic per_statistic(std::vector<T>& v) {
    return {reinterpret_cast<char*>(v.data()),
            sizeof(T) == 8 ? fastnorm::DType::float64 : fastnorm::DType::float32, sizeof(T)};
}

// Memory of a fixed size, and a thread of its own for each task, the last one first.
struct Embedder {
    alignas(64) unsigned char memory[1 << 17];
    std::size_t used = 0;
    std::int64_t tasks_run = 0;

    fastnorm::Workspace workspace() {
        return {this, [](void* self, std::size_t bytes) -> void* {
                    auto* const own = static_cast<Embedder*>(self);
                    own->used = bytes;
                    return bytes <= sizeof(own->memory) ? own->memory : nullptr;
                }};
    }
    fastnorm::ParallelFor parallel_for() {
        return {
            3, this,
            [](void* self, std::int64_t tasks, void (*body)(void*, std::int64_t), void* argument) {
                static_cast<Embedder*>(self)->tasks_run += tasks;
                std::vector<std::thread> threads;
                for (std::int64_t task = tasks; task-- > 0;) {
                    threads.emplace_back(body, argument, task);
                }
                for (std::thread& thread : threads) thread.join();
            }};
    }
};

void test_instance_norm(fastnorm::Traversal traversal, std::int64_t positions) {
    const bool rows = traversal == fastnorm::Traversal::rows;
    const std::string name = (rows ? "channels first, " : "channels last, ") +
                             std::to_string(positions) + " positions: ";
    const std::int64_t image = channels * positions;
    const std::int64_t channel_stride = rows ? positions : 1;  // in elements
    const std::int64_t position_stride = rows ? 1 : channels;
    std::vector<float> x(static_cast<std::size_t>(images * image)), dy(x), y(x), dx(x),
        expected_y(x), expected_dx(x);
    std::vector<float> weight(channels), bias(channels);
    for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = sample(static_cast<std::int64_t>(i));
        dy[i] = sample(static_cast<std::int64_t>(3 * i + 1));
    }
    for (std::size_t c = 0; c < weight.size(); ++c) {
        weight[c] = sample(static_cast<std::int64_t>(c)) + 0.0625f;
        bias[c] = sample(static_cast<std::int64_t>(c + 5));
    }
    std::vector<double> mean(images * channels), rstd(mean), dweight(channels), dbias(channels);
    std::vector<double> expected_dweight(channels), expected_dbias(channels);

    fastnorm::Problem problem;
    problem.activation = fastnorm::ActivationKind::relu;
    problem.weight = per_statistic(weight);
    problem.bias = per_statistic(bias);
    fastnorm::View& view = problem.tensors.view;
    view.traversal = traversal;
    view.batch = images;
    view.outer = view.outer_extent[0] = rows ? 1 : positions;
    view.stat = channels;
    view.inner = rows ? positions : 1;
    const auto bind = [&](std::vector<float>& v) {
        fastnorm::Operand operand;
        operand.data = reinterpret_cast<char*>(v.data());
        operand.batch_stride = image * 4;
        operand.stat_stride = channel_stride * 4;
        operand.outer_stride[0] = rows ? 0 : position_stride * 4;
        return operand;
    };
    problem.tensors.x = bind(x);
    problem.tensors.y = bind(y);
    problem.tensors.dy = bind(dy);
    problem.tensors.dx = bind(dx);

    Embedder embedder;
    const fastnorm::Execution execution{fastnorm::active_kernels(), embedder.parallel_for(),
                                        embedder.workspace()};
    fastnorm::normalize_by_own_statistics(execution, problem, eps, per_statistic(mean),
                                          per_statistic(rstd), {});
    expect(embedder.used > 0 && embedder.tasks_run > 1, "the embedder's means were not used");
    fastnorm::normalize_backward(execution, problem, per_statistic(mean), per_statistic(rstd),
                                 false, per_statistic(dweight), per_statistic(dbias));

    // The same as batch norm of one image after the other.
    for (std::int64_t n = 0; n < images; ++n) {
        const auto part = [&](std::vector<float>& v) {
            TensorView one(v.data() + n * image, {1, channels, positions});
            one.strides[1] = channel_stride * 4;
            one.strides[2] = position_stride * 4;
            return one;
        };
        const auto of_channels = [](std::vector<double>& v, std::int64_t from) {
            return TensorView(v.data() + from, {channels});
        };
        std::vector<double> own_mean(channels), own_rstd(channels), own_dweight(channels),
            own_dbias(channels);
        const TensorView w(weight.data(), {channels});
        const TensorView b(bias.data(), {channels});
        fastnorm::BatchNormTrainOptions options;
        options.eps = eps;
        options.activation = fastnorm::Activation::relu();
        fastnorm::batch_norm_train(part(x), w, b, part(expected_y), of_channels(own_mean, 0),
                                   of_channels(own_rstd, 0), {}, options);
        fastnorm::BatchNormBackwardOptions backward;
        backward.activation = options.activation;
        fastnorm::batch_norm_backward(
            part(dy), part(x), of_channels(mean, n * channels), of_channels(rstd, n * channels), w,
            b, {part(expected_dx), of_channels(own_dweight, 0), of_channels(own_dbias, 0), {}},
            backward);
        for (std::size_t c = 0; c < own_mean.size(); ++c) {
            const std::size_t s = static_cast<std::size_t>(n * channels) + c;
            expect(mean[s] == own_mean[c] && rstd[s] == own_rstd[c],
                   name + "statistics of a channel differ");
            expected_dweight[c] += own_dweight[c];
            expected_dbias[c] += own_dbias[c];
        }
    }
    expect(y == expected_y, name + "y differs");
    expect(dx == expected_dx, name + "dx differs");
    for (std::size_t c = 0; c < dweight.size(); ++c) {
        expect(std::fabs(dweight[c] - expected_dweight[c]) < 1e-9 &&
                   std::fabs(dbias[c] - expected_dbias[c]) < 1e-9,
               name + "the sums of a parameter's gradients differ");
    }
}

}  // namespace

int main() {
    for (const std::string& isa : fastnorm::isas()) {
        fastnorm::set_isa(isa);
        for (const fastnorm::Traversal traversal :
             {fastnorm::Traversal::rows, fastnorm::Traversal::columns}) {
            test_instance_norm(traversal, 411);   // enough for threads
            test_instance_norm(traversal, 4001);  // and to be streamed, one image after the other
        }
    }
    return test_result();
}
