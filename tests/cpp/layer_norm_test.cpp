// What layer norm's gradients do not depend on: which of them are wanted.
#include <limits>
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

// large: some elements of dy; sums of two may leave the range of float32, those of all do not.
Gradients gradients_of(float large, bool wants_dweight, bool wants_dbias) {
    std::vector<float> x(rows * features), dy(x.size()), y(x.size()), weight(features, 0.5f);
    for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>((i * 37 + i * i % 101) % 61) / 8;
        dy[i] = i % features % 7 == 0 ? large : static_cast<float>(i * 11 % 53) / 16 - 1;
        if (i / features % 4 >= 2) dy[i] = -dy[i];  // two rows of a tile, then two
    }
    std::vector<float> mean(rows), rstd(rows);
    const auto matrix = [](std::vector<float>& of) {
        return TensorView(of.data(), {rows, features});
    };
    const TensorView means(mean.data(), {rows}), rstds(rstd.data(), {rows});
    const TensorView weights(weight.data(), {features});
    fastnorm::layer_norm_train(matrix(x), weights, {}, matrix(y), means, rstds, {});
    Gradients found;
    fastnorm::NormGradients wanted;
    wanted.out = matrix(found.dx);
    if (wants_dweight) wanted.dweight = {found.dweight.data(), {features}};
    if (wants_dbias) wanted.dbias = {found.dbias.data(), {features}};
    fastnorm::layer_norm_backward(matrix(dy), matrix(x), means, rstds, weights, {}, wanted);
    return found;
}

void test_unwanted_gradients() {
    for (const float large : {1.5f, std::numeric_limits<float>::max() * 0.75f}) {
        const Gradients all = gradients_of(large, true, true);
        const Gradients of_weight = gradients_of(large, true, false);
        const Gradients of_bias = gradients_of(large, false, true);
        const Gradients neither = gradients_of(large, false, false);
        expect(of_weight.dweight == all.dweight, "dweight alone");
        expect(of_bias.dbias == all.dbias, "dbias alone");
        expect(of_weight.dx == all.dx && of_bias.dx == all.dx && neither.dx == all.dx, "dx");
        for (const float value : all.dbias) expect(value - value == 0.0f, "dbias is finite");
    }
}

}  // namespace

int main() {
    for (const std::string& isa : fastnorm::isas()) {
        fastnorm::set_isa(isa);
        test_unwanted_gradients();
    }
    return test_result();
}
