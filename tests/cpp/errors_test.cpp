// What the C++ API says about wrong arguments, and that it has written nothing then.
#include <cmath>
#include <cstdint>
#include <vector>

#include "expect.h"
#include "fastnorm/fastnorm.hpp"

namespace {

using fastnorm::DType;
using fastnorm::TensorView;

// x of shape (2, 4, 3), its statistics and an output.
struct Arguments {
    std::vector<float> x_values = std::vector<float>(24, 1.0f);
    std::vector<float> out_values = std::vector<float>(24, -7.0f);
    std::vector<double> mean_values = std::vector<double>(4, 0.0);
    std::vector<double> var_values = std::vector<double>(4, 1.0);

    TensorView x{x_values.data(), {2, 4, 3}};
    TensorView out{out_values.data(), {2, 4, 3}};
    TensorView mean{mean_values.data(), {4}};
    TensorView var{var_values.data(), {4}};
    TensorView weight{}, bias{};
    fastnorm::BatchNormOptions options{};

    void call() const { fastnorm::batch_norm(x, mean, var, weight, bias, out, options); }
    bool untouched() const { return out_values == std::vector<float>(24, -7.0f); }
};

// change makes the arguments wrong in one respect.
template <class E = std::invalid_argument, class F>
void expect_batch_norm_error(const std::string& what, F&& change) {
    Arguments arguments;
    change(arguments);
    expect_error<E>("batch_norm: " + what, [&] { arguments.call(); });
    expect(arguments.untouched(), "out was written in spite of: " + what);
}

void test_arguments() {
    std::vector<double> three(3);
    std::vector<std::uint8_t> bytes(4);
    using A = Arguments;
    expect_batch_norm_error(
        "weight has shape (3,), expected (4,): channel_axis is 1, x has shape (2, 4, 3)",
        [&](A& a) { a.weight = {three.data(), {3}}; });
    expect_batch_norm_error("x is missing, expected an array", [](A& a) { a.x = {}; });
    expect_batch_norm_error("var is missing, expected an array", [](A& a) { a.var = {}; });
    expect_batch_norm_error("x has 1 dimension, expected 2 to 5",
                            [](A& a) { a.x = {a.x_values.data(), {24}}; });
    expect_batch_norm_error("out has shape (2, 3, 4), expected (2, 4, 3)",
                            [](A& a) { a.out = {a.out_values.data(), {2, 3, 4}}; });
    expect_batch_norm_error("channel_axis is 3, expected -3 to 2 for an x with shape (2, 4, 3)",
                            [](A& a) { a.options.channel_axis = 3; });
    expect_batch_norm_error("eps is -1, expected a number >= 0", [](A& a) { a.options.eps = -1; });
    expect_batch_norm_error("out is read-only, expected a writable array", [](A& a) {
        a.out = {static_cast<const float*>(a.out_values.data()), {2, 4, 3}};
    });
    expect_batch_norm_error(
        "out overlaps x, expected either the very same array or memory of its own", [](A& a) {
            a.x = {a.out_values.data(), {2, 4, 3}};
            a.x.shape[2] = a.out.shape[2] = 2;  // inside out_values, one element apart
            a.x.data = a.out_values.data() + 1;
        });
    expect_batch_norm_error<fastnorm::dtype_error>(
        "bias has dtype uint8, expected float32, float64, float16 or bfloat16",
        [&](A& a) { a.bias = {bytes.data(), {4}}; });
    expect_batch_norm_error<fastnorm::dtype_error>(
        "out has dtype float16, expected float32 as x has it",
        [](A& a) { a.out.dtype = DType::float16; });
}

// What no array of Python can be, but what a view of a C or C++ program can say.
void test_views_that_no_array_has() {
    constexpr std::int64_t huge = INT64_MAX / 2;
    std::vector<double> four(4);
    using A = Arguments;
    expect_batch_norm_error("x has no memory (null), expected an array of shape (2, 4, 3)",
                            [](A& a) { a.x.data = nullptr; });
    expect_batch_norm_error("out has no memory (null), expected an array of shape (2, 4, 3)",
                            [](A& a) { a.out.data = nullptr; });
    expect_batch_norm_error("mean has no memory (null), expected an array of shape (4,)",
                            [](A& a) { a.mean.data = nullptr; });
    expect_batch_norm_error("weight has no memory (null), expected an array of shape (4,)",
                            [&](A& a) {
                                a.weight = {four.data(), {4}};
                                a.weight.data = nullptr;
                            });
    expect_batch_norm_error("bias has shape (), expected (4,)",
                            [&](A& a) { a.bias = {four.data(), {}}; });
    expect_batch_norm_error("x has 0 dimensions, expected 2 to 5",
                            [&](A& a) { a.x = {a.x_values.data(), {}}; });
    for (const int ndim : {-1, 6, 1000000}) {
        const std::string has = " has " + std::to_string(ndim) + " dimensions, expected ";
        expect_batch_norm_error("x" + has + "2 to 5", [&](A& a) { a.x.ndim = ndim; });
        expect_batch_norm_error("out" + has + "shape (2, 4, 3)", [&](A& a) { a.out.ndim = ndim; });
        expect_batch_norm_error("var" + has + "shape (4,)", [&](A& a) { a.var.ndim = ndim; });
        expect_batch_norm_error("weight" + has + "shape (4,)", [&](A& a) { a.weight.ndim = ndim; });
    }
    expect_batch_norm_error("x has shape (2, -4, 3), expected extents >= 0",
                            [](A& a) { a.x.shape[1] = -4; });
    expect_batch_norm_error(
        "mean has shape (-4,), expected (4,): channel_axis is 1, x has shape (2, 4, 3)",
        [](A& a) { a.mean.shape[0] = -4; });
    expect_batch_norm_error("out has shape (-2, 4, 3), expected (2, 4, 3)",
                            [](A& a) { a.out.shape[0] = -2; });
    // Without elements too: every part of the product has to be a number.
    for (const std::int64_t last : {huge, std::int64_t{0}}) {
        const std::string shape = std::to_string(huge) + ", 4, " + std::to_string(last);
        expect_batch_norm_error("x has shape (" + shape + "), expected fewer elements", [&](A& a) {
            a.x.shape[0] = huge;
            a.x.shape[2] = last;
        });
    }
    for (const std::int64_t stride : {huge, INT64_MAX, INT64_MIN, std::int64_t{1} << 60}) {
        const std::string has = " has strides (" + std::to_string(stride);
        const std::string expected = "), expected its elements within 2^60 bytes";
        expect_batch_norm_error("x" + has + ", 12, 4" + expected,
                                [&](A& a) { a.x.strides[0] = stride; });
        expect_batch_norm_error("out" + has + ", 12, 4" + expected,
                                [&](A& a) { a.out.strides[0] = stride; });
        expect_batch_norm_error("var" + has + "," + expected,
                                [&](A& a) { a.var.strides[0] = stride; });
    }
    Arguments arguments;  // along an extent of 1 a stride means nothing
    arguments.x.shape[0] = arguments.out.shape[0] = 1;
    arguments.x.strides[0] = INT64_MIN;
    arguments.out.strides[0] = INT64_MAX;
    arguments.call();
    expect(!arguments.untouched(), "an extent of 1 with any stride");
}

void test_outputs_that_overlap() {
    std::vector<float> weight(4, 1.0f);
    using A = Arguments;
    const std::string itself =
        " overlaps itself, expected an array whose elements have memory of their own";
    expect_batch_norm_error("out" + itself, [](A& a) { a.out.strides[0] = a.out.strides[2]; });
    expect_batch_norm_error("out" + itself, [](A& a) { a.out.strides[2] = 2; });
    // Elements of two sizes, of which the second begins within the first and the other way round.
    for (const int at : {0, 1, 2, 3}) {
        expect_batch_norm_error("out overlaps mean, expected memory of its own", [&](A& a) {
            a.mean.data = a.out_values.data() + 2 * at;
            a.out.data = a.out_values.data() + 1;
            a.out.shape[0] = a.x.shape[0] = 1;
        });
    }
}

void test_activations() {
    using fastnorm::Activation;
    using fastnorm::ActivationKind;
    using A = Arguments;
    expect_batch_norm_error("activation relu has alpha 7, expected 0: it has no parameters",
                            [](A& a) { a.options.activation = {ActivationKind::relu, 7.0, 0.0}; });
    expect_batch_norm_error(
        "activation leaky_relu has beta nan, expected 0: it has negative_slope alone",
        [](A& a) { a.options.activation = {ActivationKind::leaky_relu, 0.1, std::nan("")}; });
    expect_batch_norm_error("activation clip has min 2 and max 1, expected min <= max",
                            [](A& a) { a.options.activation = Activation::clip(2, 1); });
    expect_batch_norm_error("activation is of kind 77, expected 0 to 9", [](A& a) {
        a.options.activation.kind = static_cast<ActivationKind>(77);
    });
    expect(fastnorm::saves_mask(Activation::clip()), "clip saves a mask");
    expect(!fastnorm::saves_mask(Activation::named("silu")), "silu saves no mask");
    expect(!fastnorm::saves_mask({static_cast<ActivationKind>(-1), 0, 0}), "no kind, no mask");
}

// A mask is good for the x, the channel axis and the activation that it was made with.
void test_mask() {
    using fastnorm::Activation;
    std::vector<float> values(16);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * i % 7);
    std::vector<float> y(16), dx(16);
    std::vector<double> statistics(4);
    const TensorView x(values.data(), {1, 2, 2, 4});
    const TensorView out(y.data(), {1, 2, 2, 4});
    const std::int64_t size = fastnorm::batch_norm_sizes(x).mask_bytes;
    std::vector<std::uint8_t> bits(static_cast<std::size_t>(size));
    const TensorView mask(bits.data(), {size});
    fastnorm::BatchNormTrainOptions train;
    train.activation = Activation::leaky_relu(0.5);
    const TensorView mean(statistics.data(), {2});
    const TensorView rstd(statistics.data() + 2, {2});
    fastnorm::batch_norm_train(x, {}, {}, out, mean, rstd, mask, train);

    const auto backward = [&](const TensorView& data, int channel_axis, Activation activation,
                              TensorView saved) {
        fastnorm::BatchNormBackwardOptions options;
        options.channel_axis = channel_axis;
        options.activation = activation;
        options.mask = saved;
        TensorView gradient = data;
        gradient.data = dx.data();
        fastnorm::batch_norm_backward(data, data, mean, rstd, {}, {}, {gradient, {}, {}, {}},
                                      options);
    };
    backward(x, 1, train.activation, mask);
    backward(x, -3, train.activation, mask);

    TensorView turned = x;  // the last two dimensions swapped in memory
    turned.strides[2] = 4;
    turned.strides[3] = 8;
    const std::string another =
        "batch_norm_backward: mask was made for another shape, memory layout, axis or "
        "activation, expected the one that the forward pass returned for this x";
    const auto refused = [&](const TensorView& data, int channel_axis, Activation activation) {
        expect(fastnorm::batch_norm_sizes(data, channel_axis).mask_bytes == size,
               "a mask of this size");
        expect_error<std::invalid_argument>(
            another, [&] { backward(data, channel_axis, activation, mask); });
    };
    refused(turned, 1, train.activation);
    refused(x, 2, train.activation);
    refused(x, 1, Activation::leaky_relu(0.25));
    refused(x, 1, Activation::relu());
    refused(TensorView(values.data(), {2, 2, 1, 4}), 1, train.activation);

    const auto wrong = [&](const std::string& what, TensorView saved) {
        expect_error<std::invalid_argument>("batch_norm_backward: mask " + what,
                                            [&] { backward(x, 1, train.activation, saved); });
    };
    const std::string expected = "(" + std::to_string(size) + ",)";
    wrong("has shape (2, 1), expected " + expected, {bits.data(), {2, 1}});
    wrong("has shape (8,), expected " + expected, {bits.data(), {8}});
    TensorView null = mask;
    null.data = nullptr;
    wrong("has no memory (null), expected an array of shape " + expected, null);
    TensorView strided = mask;
    strided.strides[0] = 0;
    wrong("has strides, expected a contiguous array as the forward pass made it", strided);
    expect_error<std::invalid_argument>(
        "batch_norm_backward: mask is given, expected none: activation silu does not have one",
        [&] { backward(x, 1, Activation::named("silu"), mask); });

    // Without elements, a mask is the signature alone.
    const TensorView empty(static_cast<float*>(nullptr), {0, 2, 3});
    expect(fastnorm::batch_norm_sizes(empty).mask_bytes == 8, "the mask of no elements");
    fastnorm::batch_norm_train(empty, {}, {}, empty, {}, {}, {bits.data(), {8}}, train);
    backward(empty, 1, train.activation, {bits.data(), {8}});
    expect_error<std::invalid_argument>(
        another, [&] { backward(empty, 1, Activation::relu(), {bits.data(), {8}}); });
}

void test_other_functions() {
    expect_error<std::invalid_argument>(
        "batch_norm_sizes: channel_axis is 2, expected -2 to 1 for an x with shape (3, 4)",
        [] { fastnorm::batch_norm_sizes({static_cast<float*>(nullptr), {3, 4}}, 2); });
    const auto statistics_dtype = [](DType dtype) {
        return fastnorm::batch_norm_sizes(TensorView(static_cast<void*>(nullptr), dtype, {3, 4}))
            .statistics_dtype;
    };
    expect(statistics_dtype(DType::bfloat16) == DType::float32 &&
               statistics_dtype(DType::float32) == DType::float64,
           "the dtype of statistics");
    expect_error<std::invalid_argument>(
        "batch_norm_train: x has shape (1, 4), 1 value per channel, expected more than 1 in "
        "training",
        [] {
            std::vector<float> x(4);
            const TensorView view(x.data(), {1, 4});
            fastnorm::batch_norm_train(view, {}, {}, view, {}, {}, {});
        });
    expect_error<std::invalid_argument>(
        "batch_norm_backward: dy has shape (3, 2), expected (2, 3)", [] {
            std::vector<float> values(6);
            const TensorView x(values.data(), {2, 3});
            const TensorView dy(values.data(), {3, 2});
            const TensorView statistic(values.data(), {3});
            fastnorm::batch_norm_backward(dy, x, statistic, statistic, {}, {}, {x, {}, {}, {}});
        });
    expect_error<std::invalid_argument>(
        "rms_norm_backward: dsum is given, expected none beside a residual that is added "
        "behind the norm: prenorm's is part of x, and dx its gradient too",
        [] {
            std::vector<float> values(6), dx(6), dresidual(6);
            const TensorView x(values.data(), {2, 3});
            const TensorView rstd(values.data(), {2});
            fastnorm::LayerNormBackwardOptions options;
            options.dsum = x;
            fastnorm::rms_norm_backward(x, x, rstd, {}, {},
                                        {{dx.data(), {2, 3}}, {}, {}, {dresidual.data(), {2, 3}}},
                                        options);
        });
    expect_error<std::invalid_argument>(
        "activation is 'swish', expected one of identity, relu, leaky_relu, clip, sigmoid, tanh, "
        "silu, gelu, gelu_tanh, hardswish",
        [] { fastnorm::Activation::named("swish"); });
    expect_error<std::invalid_argument>("set_num_threads: n is 0, expected a number >= 1",
                                        [] { fastnorm::set_num_threads(0); });
    expect_error<std::invalid_argument>("TensorView: ndim is 6, expected 0 to 5", [] {
        float x = 0;
        const TensorView view(&x, {1, 1, 1, 1, 1, 1});
    });
    std::string known;
    for (const std::string& isa : fastnorm::isas()) known += (known.empty() ? "" : ", ") + isa;
    expect_error<std::invalid_argument>("set_isa: name is 'sse9', expected one of " + known,
                                        [] { fastnorm::set_isa("sse9"); });
}

}  // namespace

int main() {
    test_arguments();
    test_views_that_no_array_has();
    test_outputs_that_overlap();
    test_activations();
    test_mask();
    test_other_functions();
    return test_result();
}
