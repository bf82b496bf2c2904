// What the gradients of layer and RMS norm do not depend on: which of them are wanted.
#include <limits>
#include <string>
#include <vector>

#include "expect.h"
#include "fastnorm/fastnorm.hpp"

namespace {

using fastnorm::TensorView;

constexpr std::int64_t rows = 67, features = 1301;

struct Gradients {
    std::vector<float> dx = std::vector<float>(rows * features);
    std::vector<float> dweight = std::vector<float>(features);
    std::vector<float> dbias = std::vector<float>(features);
};

struct How {
    float large;  // some elements of dy: sums of two may leave float32's range, those of all do not
    bool centred, in_place;
};

Gradients gradients_of(const How& how, bool wants_dweight, bool wants_dbias) {
    std::vector<float> x(rows * features), dy(x.size()), y(x.size()), weight(features, 0.5f);
    for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>((i * 37 + i * i % 101) % 61) / 8;
        dy[i] = i % features % 7 == 0 ? how.large : static_cast<float>(i * 11 % 53) / 16 - 1;
        if (i / features % 4 >= 2) dy[i] = -dy[i];  // two rows of a tile, then two
    }
    std::vector<float> mean(rows), rstd(rows);
    const auto matrix = [](std::vector<float>& of) {
        return TensorView(of.data(), {rows, features});
    };
    const TensorView means(mean.data(), {rows}), rstds(rstd.data(), {rows});
    const TensorView weights(weight.data(), {features});
    if (how.centred) {
        fastnorm::layer_norm_train(matrix(x), weights, {}, matrix(y), means, rstds, {});
    } else {
        fastnorm::rms_norm_train(matrix(x), weights, {}, matrix(y), rstds, {});
    }
    Gradients found;
    if (how.in_place) found.dx = dy;
    fastnorm::NormGradients wanted;
    wanted.out = matrix(found.dx);
    if (wants_dweight) wanted.dweight = {found.dweight.data(), {features}};
    if (wants_dbias) wanted.dbias = {found.dbias.data(), {features}};
    const TensorView given = matrix(how.in_place ? found.dx : dy);
    if (how.centred) {
        fastnorm::layer_norm_backward(given, matrix(x), means, rstds, weights, {}, wanted);
    } else {
        fastnorm::rms_norm_backward(given, matrix(x), rstds, weights, {}, wanted);
    }
    return found;
}

void test_unwanted_gradients(const How& how, const std::string& isa) {
    const Gradients all = gradients_of(how, true, true);
    const Gradients of_weight = gradients_of(how, true, false);
    const Gradients of_bias = gradients_of(how, false, true);
    const Gradients neither = gradients_of(how, false, false);
    expect(of_weight.dweight == all.dweight, isa + ": dweight alone");
    expect(of_bias.dbias == all.dbias, isa + ": dbias alone");
    expect(of_weight.dx == all.dx && of_bias.dx == all.dx && neither.dx == all.dx, isa + ": dx");
    bool finite = true;
    for (const float value : all.dbias) finite &= value - value == 0.0f;
    expect(finite, isa + ": dbias is finite");
}

}  // namespace

int main() {
    for (const std::string& isa : fastnorm::isas()) {
        fastnorm::set_isa(isa);
        for (const bool centred : {true, false}) {
            for (const bool in_place : {true, false}) {
                test_unwanted_gradients({1.5f, centred, in_place}, isa);
                const float large = std::numeric_limits<float>::max() * 0.75f;
                test_unwanted_gradients({large, centred, in_place}, isa);
            }
        }
    }
    return test_result();
}
