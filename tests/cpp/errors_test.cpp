// What the C++ API says about wrong arguments, and that it has written nothing then.
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
    expect_batch_norm_error("weight has shape (3,), expected (4,)",
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

void test_other_functions() {
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
        "activation is 'swish', expected one of identity, relu, leaky_relu, clip, sigmoid, tanh, "
        "silu, gelu, gelu_tanh, hardswish",
        [] { fastnorm::Activation::named("swish"); });
    expect_error<std::invalid_argument>("set_num_threads: n is 0, expected a number >= 1",
                                        [] { fastnorm::set_num_threads(0); });
    expect_error<std::invalid_argument>("TensorView: shape has 6 dimensions, expected at most 5",
                                        [] {
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
    test_other_functions();
    return test_result();
}
