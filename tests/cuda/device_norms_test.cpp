// The norms of samples and of rows on a device, in the caller's scratch: exactly so much as is said
// to be needed, with guards behind it, for the same bits; and with less nothing is written.
#include <functional>
#include <string>
#include <vector>

#include "../cpp/expect.h"
#include "device_copy.h"
#include "fastnorm/fastnorm.hpp"

namespace {

using fastnorm::Device;
using fastnorm::Explanation;
using fastnorm::TensorView;

// Images, or rows, that are no whole packs: two passes.
constexpr std::int64_t images = 3, channels = 6, plane = 41;
constexpr std::int64_t rows = 18, features = 41;

std::vector<float> numbers(std::size_t count, std::size_t seed) {
    std::vector<float> result(count);
    for (std::size_t i = 0; i < count; ++i) {
        result[i] = static_cast<float>((i * 37 + i * i * 11 + seed * 5) % 61) / 8 - 3;
    }
    return result;
}

TensorView view(const Copy& copy, std::vector<std::int64_t> shape) {
    auto* const data = static_cast<float*>(copy.data());
    const TensorView found = shape.size() == 1   ? TensorView(data, {shape[0]})
                             : shape.size() == 2 ? TensorView(data, {shape[0], shape[1]})
                                                 : TensorView(data, {shape[0], shape[1], shape[2]});
    return found.on(Device::cuda());
}

// call(scratch, explanation): with either, neither. results: what it writes.
void check(const std::string& op, const std::vector<const Copy*>& results,
           const std::function<void(const TensorView&, Explanation*)>& call) {
    const std::vector<float> poison(rows * features, 99.0f);
    const auto run = [&](const TensorView& scratch) {
        for (const Copy* result : results) result->set(poison);
        call(scratch, nullptr);
        std::vector<std::vector<float>> found;
        for (const Copy* result : results) {
            found.emplace_back(result->bytes_count() / sizeof(float));
            result->get(found.back());
        }
        return found;
    };
    const auto expected = run({});
    Explanation explanation;
    call({}, &explanation);
    const auto needed = static_cast<std::size_t>(explanation.scratch_bytes);
    expect(needed > 0, op + " needs no scratch");
    constexpr std::size_t guard = 64;
    std::vector<std::uint8_t> marks(needed + guard, 0xab);
    const Copy memory(marks);
    const auto scratch_of = [&](std::size_t bytes) {
        return TensorView(static_cast<std::uint8_t*>(memory.data()),
                          {static_cast<std::int64_t>(bytes)})
            .on(Device::cuda());
    };
    expect(run(scratch_of(needed)) == expected, op + ": scratch changes results");
    memory.get(marks);
    for (std::size_t i = needed; i < marks.size(); ++i) {
        expect(marks[i] == 0xab, op + " writes behind its scratch");
    }
    for (const Copy* result : results) result->set(poison);
    expect_error<std::invalid_argument>(op + ": scratch has " + std::to_string(needed - 1) +
                                            " bytes, expected at least " + std::to_string(needed),
                                        [&] { call(scratch_of(needed - 1), nullptr); });
    for (const Copy* result : results) {
        std::vector<float> found(result->bytes_count() / sizeof(float));
        result->get(found);
        for (const float value : found) expect(value == 99.0f, op + " wrote before it failed");
    }
}

}  // namespace

int main() {
    constexpr std::size_t size = images * channels * plane;
    static_assert(size == rows * features);
    const Copy x(numbers(size, 1)), dy(numbers(size, 2)), residual(numbers(size, 3));
    const Copy y(numbers(size, 0)), sum(numbers(size, 0));
    const std::vector<std::int64_t> shape{images, channels, plane}, matrix{rows, features};

    const Copy weight(numbers(channels, 4)), bias(numbers(channels, 5));
    const Copy group_mean(numbers(images * 3, 0)), group_rstd(numbers(images * 3, 0));
    const Copy dweight(numbers(channels, 0)), dbias(numbers(channels, 0));
    const auto of_group = [&](const Copy& copy) { return view(copy, {images, 3}); };
    const auto of_channel = [&](const Copy& copy) { return view(copy, {channels}); };
    fastnorm::GroupNormOptions plain;
    fastnorm::group_norm_train(view(x, shape), 3, of_channel(weight), of_channel(bias),
                               view(y, shape), of_group(group_mean), of_group(group_rstd), {},
                               plain);
    check("group_norm_backward", {&y, &dweight, &dbias},
          [&](const TensorView& scratch, Explanation* explanation) {
              fastnorm::GroupNormBackwardOptions options;
              options.scratch = scratch;
              options.explanation = explanation;
              fastnorm::group_norm_backward(
                  view(dy, shape), view(x, shape), 3, of_group(group_mean), of_group(group_rstd),
                  of_channel(weight), of_channel(bias),
                  {view(y, shape), of_channel(dweight), of_channel(dbias), {}}, options);
          });

    const Copy scale(numbers(features, 6)), shift(numbers(features, 7));
    const Copy mean(numbers(rows, 0)), rstd(numbers(rows, 0));
    const Copy dscale(numbers(features, 0)), dshift(numbers(features, 0));
    const auto of_feature = [&](const Copy& copy) { return view(copy, {features}); };
    const auto of_row = [&](const Copy& copy) { return view(copy, {rows}); };
    fastnorm::layer_norm_train(view(x, matrix), of_feature(scale), of_feature(shift),
                               view(y, matrix), of_row(mean), of_row(rstd), {});
    check("layer_norm_backward", {&y, &dscale, &dshift},
          [&](const TensorView& scratch, Explanation* explanation) {
              fastnorm::LayerNormBackwardOptions options;
              options.activation =
                  fastnorm::Activation{fastnorm::ActivationKind::silu};  // which needs the biases
              options.scratch = scratch;
              options.explanation = explanation;
              fastnorm::layer_norm_backward(
                  view(dy, matrix), view(x, matrix), of_row(mean), of_row(rstd), of_feature(scale),
                  of_feature(shift), {view(y, matrix), of_feature(dscale), of_feature(dshift), {}},
                  options);
          });

    // Weights of another dtype have a place there, too.
    const Copy wide(std::vector<double>(features, 0.5));
    const TensorView weights =
        TensorView(static_cast<double*>(wide.data()), {features}).on(Device::cuda());
    check("rms_norm", {&y, &sum}, [&](const TensorView& scratch, Explanation* explanation) {
        fastnorm::RMSNormOptions options;
        options.residual = view(residual, matrix);
        options.sum_out = view(sum, matrix);
        options.scratch = scratch;
        options.explanation = explanation;
        fastnorm::rms_norm(view(x, matrix), weights, {}, view(y, matrix), options);
    });
    return test_result();
}
