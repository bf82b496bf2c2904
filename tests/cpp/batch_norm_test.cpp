// Batch norm through the C++ API against the straightforward loops, for every dtype and layout, on
// every instruction set of the machine.
#include <cmath>
#include <cstdio>
#include <vector>

#include "expect.h"
#include "fastnorm/fastnorm.hpp"
#include "tensors.h"

namespace {

using fastnorm::Activation;
using fastnorm::ActivationKind;
using fastnorm::TensorView;

constexpr Extents extents{3, 5, 37};
constexpr double eps = 1e-3;
constexpr double momentum = 0.25;

const Layout layouts[] = {
    {"channels first", 185, 37, 1}, {"channels last", 185, 1, 5}, {"padded", 207, 41, 1},
    {"every second", 370, 74, 2},   {"reversed", -185, -37, -1},
};

template <class F>
void for_each_element(F&& f) {
    for (std::int64_t n = 0; n < extents.n; ++n)
        for (std::int64_t c = 0; c < extents.c; ++c)
            for (std::int64_t s = 0; s < extents.s; ++s) f(n, c, s);
}

// Multiples of 1/8 below 4: every dtype has them exactly.
double sample(std::int64_t i) { return static_cast<double>((i * 37 + i * i * 11) % 61 - 27) / 8; }
double x_at(std::int64_t n, std::int64_t c, std::int64_t s) { return sample(n * 191 + c * 41 + s); }
double dy_at(std::int64_t n, std::int64_t c, std::int64_t s) {
    return sample(n * 7 + c * 53 + 3 * s);
}
double residual_at(std::int64_t n, std::int64_t c, std::int64_t s) { return sample(s * 5 + c + n); }

const std::vector<double> weight = {1.0, -0.5, 2.0, 0.25, 1.5};
const std::vector<double> bias = {0.5, -0.25, 0.0, 1.0, -1.0};

double activate(double z, ActivationKind kind) {
    return kind == ActivationKind::relu ? std::fmax(z, 0) : z;
}
double slope(double z, ActivationKind kind) {
    return kind == ActivationKind::relu && !(z > 0) ? 0 : 1;
}

// The definition, channel by channel, in double.
struct Reference {
    std::vector<double> mean, var, dweight, dbias;

    double z(std::int64_t n, std::int64_t c, std::int64_t s) const {
        return x_hat(n, c, s) * weight[c] + bias[c] + residual_at(n, c, s);
    }
    double x_hat(std::int64_t n, std::int64_t c, std::int64_t s) const {
        return (x_at(n, c, s) - mean[c]) / std::sqrt(var[c] + eps);
    }
    double dx(std::int64_t n, std::int64_t c, std::int64_t s, double g) const {
        constexpr double count = extents.n * extents.s;
        return weight[c] / std::sqrt(var[c] + eps) *
               (g - dbias[c] / count - x_hat(n, c, s) * dweight[c] / count);
    }

    explicit Reference(ActivationKind kind)
        : mean(extents.c), var(extents.c), dweight(extents.c), dbias(extents.c) {
        constexpr double count = extents.n * extents.s;
        for_each_element([&](auto n, auto c, auto s) { mean[c] += x_at(n, c, s) / count; });
        for_each_element([&](auto n, auto c, auto s) {
            var[c] += (x_at(n, c, s) - mean[c]) * (x_at(n, c, s) - mean[c]) / count;
        });
        for_each_element([&](auto n, auto c, auto s) {
            const double g = dy_at(n, c, s) * slope(z(n, c, s), kind);
            dbias[c] += g;
            dweight[c] += g * x_hat(n, c, s);
        });
    }
};

template <class T>
struct Case {
    const Layout& layout;
    ActivationKind kind;
    std::string name;
    Reference reference{kind};
    Tensor<T> x{extents, layout}, dy{extents, layout}, residual{extents, layout};

    Case(const Layout& layout_, ActivationKind kind_)
        : layout(layout_),
          kind(kind_),
          name(std::string(fastnorm::isa()) + ", " + layout.name + ", " +
               std::to_string(sizeof(T)) + " bytes, activation " +
               std::to_string(static_cast<int>(kind)) + ": ") {
        for_each_element([&](auto n, auto c, auto s) {
            set(x.at(n, c, s), x_at(n, c, s));
            set(dy.at(n, c, s), dy_at(n, c, s));
            set(residual.at(n, c, s), residual_at(n, c, s));
        });
    }

    // One rounding to T, and the arithmetic before it: at least float's, on numbers below 30.
    static bool close(double actual, double expected) {
        constexpr double roundoff = DTypeOf<T>::roundoff;
        constexpr double arithmetic = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
        return std::fabs(actual - expected) <= roundoff * std::fabs(expected) + 64 * arithmetic;
    }
    // Of a sum, terms is the sum of their magnitudes: what cancels leaves its rounding behind.
    static bool close_statistic(double actual, double expected, double terms) {
        constexpr double arithmetic = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
        return std::fabs(actual - expected) <= 8 * arithmetic * (terms + std::fabs(expected));
    }

    // Every element of the tensor is what f says, and nothing between them was written.
    template <class F>
    void expect_all(Tensor<T>& actual, const char* what, F&& f) {
        int wrong = 0;
        for_each_element(
            [&](auto n, auto c, auto s) { wrong += !close(actual.value(n, c, s), f(n, c, s)); });
        expect(wrong == 0, name + what + ": " + std::to_string(wrong) + " elements differ");
        expect(actual.padding_is_untouched(), name + what + ": wrote between the elements");
    }
    void expect_vector(const std::vector<double>& actual, const std::vector<double>& expected,
                       const char* what, double terms = 1) {
        for (std::size_t c = 0; c < expected.size(); ++c) {
            expect(close_statistic(actual[c], expected[c], terms),
                   name + what + " of channel " + std::to_string(c) + " is " +
                       std::to_string(actual[c]) + ", expected " + std::to_string(expected[c]));
        }
    }

    void run() {
        const TensorView weight_view(weight.data(), {extents.c});
        const TensorView bias_view(bias.data(), {extents.c});
        const auto y_at = [&](auto n, auto c, auto s) {
            return activate(reference.z(n, c, s), kind);
        };

        fastnorm::BatchNormOptions inference;
        inference.eps = eps;
        inference.activation.kind = kind;
        inference.residual = residual.view();
        Tensor<T> y(extents, layout);
        fastnorm::batch_norm(x.view(), {reference.mean.data(), {extents.c}},
                             {reference.var.data(), {extents.c}}, weight_view, bias_view, y.view(),
                             inference);
        expect_all(y, "inference", y_at);

        std::vector<double> running_mean(extents.c, 2.0);
        std::vector<double> running_var(extents.c, 3.0);
        fastnorm::BatchNormTrainOptions train;
        static_cast<fastnorm::BatchNormOptions&>(train) = inference;
        train.running_mean = {running_mean.data(), {extents.c}};
        train.running_var = {running_var.data(), {extents.c}};
        train.momentum = momentum;
        std::vector<std::uint8_t> bits;
        TensorView mask;
        if (kind == ActivationKind::relu) {
            const std::int64_t bytes = fastnorm::batch_norm_sizes(x.view()).mask_bytes;
            bits.resize(static_cast<std::size_t>(bytes));
            mask = {bits.data(), {bytes}};
        }
        std::vector<double> mean(extents.c);
        std::vector<double> rstd(extents.c);
        Tensor<T> trained(extents, layout);
        const TensorView mean_view(mean.data(), {extents.c});
        const TensorView rstd_view(rstd.data(), {extents.c});
        fastnorm::batch_norm_train(x.view(), weight_view, bias_view, trained.view(), mean_view,
                                   rstd_view, mask, train);
        expect_all(trained, "training", y_at);
        expect_vector(mean, reference.mean, "mean");
        std::vector<double> expected(extents.c);
        const auto channels = static_cast<std::size_t>(extents.c);
        constexpr double count = extents.n * extents.s;
        for (std::size_t c = 0; c < channels; ++c) {
            expected[c] = 1 / std::sqrt(reference.var[c] + eps);
        }
        expect_vector(rstd, expected, "rstd");
        for (std::size_t c = 0; c < channels; ++c) {
            expected[c] = (1 - momentum) * 2 + momentum * reference.mean[c];
        }
        expect_vector(running_mean, expected, "running_mean");
        for (std::size_t c = 0; c < channels; ++c) {
            expected[c] = (1 - momentum) * 3 + momentum * reference.var[c] * count / (count - 1);
        }
        expect_vector(running_var, expected, "running_var");

        backward(mean_view, rstd_view, weight_view, bias_view, mask);
    }

    void backward(const TensorView& mean, const TensorView& rstd, const TensorView& weight_view,
                  const TensorView& bias_view, const TensorView& mask) {
        const auto g_at = [&](auto n, auto c, auto s) {
            return dy_at(n, c, s) * slope(reference.z(n, c, s), kind);
        };
        fastnorm::BatchNormBackwardOptions options;
        options.activation.kind = kind;
        options.residual = residual.view();
        options.mask = mask;
        std::vector<double> dweight(extents.c);
        std::vector<double> dbias(extents.c);
        Tensor<T> dx(extents, layout);
        Tensor<T> dresidual(extents, layout);
        fastnorm::NormGradients gradients;
        gradients.out = dx.view();
        gradients.dweight = {dweight.data(), {extents.c}};
        gradients.dbias = {dbias.data(), {extents.c}};
        gradients.dresidual = dresidual.view();
        fastnorm::batch_norm_backward(dy.view(), x.view(), mean, rstd, weight_view, bias_view,
                                      gradients, options);
        expect_all(dx, "dx",
                   [&](auto n, auto c, auto s) { return reference.dx(n, c, s, g_at(n, c, s)); });
        expect_all(dresidual, "dresidual", g_at);
        expect_vector(dweight, reference.dweight, "dweight", extents.n * extents.s);
        expect_vector(dbias, reference.dbias, "dbias", extents.n * extents.s);

        if (mask.given()) {  // what the mask saves is what would be computed again
            options.mask = {};
            Tensor<T> recomputed(extents, layout);
            fastnorm::NormGradients again;
            again.out = recomputed.view();
            fastnorm::batch_norm_backward(dy.view(), x.view(), mean, rstd, weight_view, bias_view,
                                          again, options);
            expect(recomputed.same_bits(dx), name + "mask and recomputation differ");
        }

        options.training = false;
        fastnorm::NormGradients frozen;
        frozen.out = dx.view();
        fastnorm::batch_norm_backward(dy.view(), x.view(), mean, rstd, weight_view, bias_view,
                                      frozen, options);
        expect_all(dx, "dx of constant statistics", [&](auto n, auto c, auto s) {
            return g_at(n, c, s) * weight[c] / std::sqrt(reference.var[c] + eps);
        });
    }
};

template <class T>
void run_all() {
    for (const Layout& layout : layouts) {
        for (const ActivationKind kind : {ActivationKind::identity, ActivationKind::relu}) {
            Case<T>(layout, kind).run();
        }
    }
}

// A matrix whose channels are its last axis, in place, and the same bits on one thread and on two.
void test_in_place_and_threads() {
    constexpr std::int64_t rows = 3000;
    constexpr std::int64_t channels = 67;
    std::vector<float> values(rows * channels);
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(sample(static_cast<std::int64_t>(i)));
    }
    const auto normalized = [&](int threads) {
        fastnorm::set_num_threads(threads);
        std::vector<float> x = values;
        const TensorView view(x.data(), {rows, channels});
        fastnorm::BatchNormTrainOptions options;
        options.channel_axis = -1;
        fastnorm::batch_norm_train(view, {}, {}, view, {}, {}, {}, options);
        return x;
    };
    const std::vector<float> one = normalized(1);
    expect(one != values, "in place: x was not written");
    expect(one == normalized(2), "one thread and two give different bits");
    for (std::int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        double squares = 0;
        for (std::int64_t r = 0; r < rows; ++r) {
            const double y = one[static_cast<std::size_t>(r * channels + c)];
            sum += y;
            squares += y * y;
        }
        expect(std::fabs(sum / rows) < 1e-6, "in place: a mean is not 0");
        expect(std::fabs(squares / rows - 1) < 1e-4, "in place: a variance is not 1");
    }
}

// Planes of 7x7, streamed: dx and dresidual begin at the same or another place in a line, and the
// mask ends where its memory does.
void test_two_results_and_a_mask() {
    constexpr std::int64_t samples = 300;
    constexpr std::int64_t channels = 71;
    constexpr std::int64_t size = samples * channels * 49;
    constexpr std::int64_t margin = 48;
    std::vector<float> x(size), dy(size), y(size), ones(channels, 1.0f);
    for (std::int64_t i = 0; i < size; ++i) {
        x[static_cast<std::size_t>(i)] = static_cast<float>(sample(i));
        dy[static_cast<std::size_t>(i)] = static_cast<float>(sample(3 * i + 1));
    }
    const auto tensor = [&](float* p) { return TensorView(p, {samples, channels, 7, 7}); };
    const TensorView vector(ones.data(), {channels});

    const std::int64_t mask_bytes = fastnorm::batch_norm_sizes(tensor(x.data())).mask_bytes;
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(mask_bytes + 2 * margin), 0x5a);
    const TensorView in_mask(mask.data() + margin, {mask_bytes});
    fastnorm::BatchNormTrainOptions train;
    train.activation = Activation::relu();
    fastnorm::batch_norm_train(tensor(x.data()), {}, {}, tensor(y.data()), {}, {}, in_mask, train);
    for (std::int64_t i = 0; i < margin; ++i) {
        expect(mask[static_cast<std::size_t>(i)] == 0x5a, "the mask: written before");
        expect(mask[mask.size() - 1 - static_cast<std::size_t>(i)] == 0x5a, "the mask: behind");
    }

    fastnorm::BatchNormBackwardOptions backward;
    backward.training = false;
    backward.activation = Activation::relu();
    backward.mask = in_mask;
    for (const std::int64_t dx_at : {0, 1, 5, 15}) {
        for (const std::int64_t dresidual_at : {0, 5, 15}) {
            std::vector<float> dx(size + margin, 7.0f), dresidual(size + margin, 7.0f);
            fastnorm::NormGradients gradients;
            gradients.out = tensor(dx.data() + dx_at);
            gradients.dresidual = tensor(dresidual.data() + dresidual_at);
            fastnorm::batch_norm_backward(tensor(dy.data()), tensor(x.data()), vector, vector, {},
                                          {}, gradients, backward);
            std::vector<float> expected(size + margin, 7.0f), expected_dx = expected;
            for (std::int64_t i = 0; i < size; ++i) {
                const auto k = static_cast<std::size_t>(i);
                const float g = y[k] > 0 ? dy[k] : 0.0f;
                expected[static_cast<std::size_t>(i + dresidual_at)] = g;
                expected_dx[static_cast<std::size_t>(i + dx_at)] = g;  // weight * rstd is 1
            }
            expect(dresidual == expected, "planes of 7x7: dresidual");
            expect(dx == expected_dx, "planes of 7x7: dx");
        }
    }
}

// What a call would do, and that it does not.
void test_explanation() {
    std::vector<float> x(64 * 512, 1.0f), out(x.size(), 7.0f), mean(512, 0.0f), var(512, 1.0f);
    fastnorm::Explanation explanation;
    fastnorm::BatchNormOptions options;
    options.explanation = &explanation;
    const TensorView in(x.data(), {64, 512}), statistics(mean.data(), {512});
    fastnorm::batch_norm(in, statistics, {var.data(), {512}}, {}, {}, {out.data(), {64, 512}},
                         options);
    expect(explanation.isa == fastnorm::isa(), "explanation: isa");
    expect(explanation.traversal == "columns", "explanation: traversal");
    expect(explanation.outer == 64 && explanation.stat == 512, "explanation: view");
    expect(explanation.least_bytes == 2 * 4 * 64 * 512, "explanation: bytes");
    expect(!explanation.stream && explanation.reads == 1, "explanation: stores and reads");
    expect(explanation.copied.empty(), "explanation: copies");
    expect(out == std::vector<float>(out.size(), 7.0f), "explanation: out was written");
}

}  // namespace

int main() {
    std::printf("fastnorm %s, %s\n", fastnorm::version(), fastnorm::openmp_runtime());
    for (const std::string& isa : fastnorm::isas()) {
        fastnorm::set_isa(isa);
        std::printf("%s\n", isa.c_str());
        run_all<float>();
        run_all<double>();
        run_all<Half>();
        run_all<BFloat16>();
        test_in_place_and_threads();
        test_two_results_and_a_mask();
        test_explanation();
    }
    return test_result();
}
