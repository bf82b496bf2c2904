// The C++ and C API on a device: tensors that say where they are, a stream, the same results.
#include <cmath>
#include <cstdio>
#include <vector>

#include "../cpp/expect.h"
#include "device_copy.h"
#include "fastnorm/fastnorm.h"
#include "fastnorm/fastnorm.hpp"

namespace {

using fastnorm::Device;
using fastnorm::TensorView;

constexpr std::int64_t images = 3, channels = 6, plane = 41;  // two passes: scratch is needed

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        largest = std::fmax(largest, std::fabs(static_cast<double>(a[i]) - b[i]));
    }
    return largest;
}

}  // namespace

int main() {
    std::vector<float> x(images * channels * plane), y(x.size()), on_device(x.size(), 99.0f);
    for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>((i * 37 + i * i * 11) % 61) / 8 - 3;
    }
    std::vector<double> mean(channels), rstd(channels), found_mean(channels);
    const TensorView x_view(x.data(), {images, channels, plane});
    fastnorm::BatchNormTrainOptions options;
    options.activation = fastnorm::Activation::relu();
    fastnorm::batch_norm_train(x_view, {}, {}, {y.data(), {images, channels, plane}},
                               {mean.data(), {channels}}, {rstd.data(), {channels}}, {}, options);

    const Copy x_copy(x), y_copy(on_device), mean_copy(mean), rstd_copy(rstd);
    const auto data = [&](const Copy& copy) {
        return TensorView(static_cast<float*>(copy.data()), {images, channels, plane})
            .on(Device::cuda());
    };
    const auto vector = [&](const Copy& copy) {
        return TensorView(static_cast<double*>(copy.data()), {channels}).on(Device::cuda());
    };
    std::vector<std::uint8_t> bits(
        static_cast<std::size_t>(fastnorm::batch_norm_sizes(data(x_copy)).mask_bytes));
    const Copy mask(bits);
    const auto train = [&] {
        fastnorm::batch_norm_train(data(x_copy), {}, {}, data(y_copy), vector(mean_copy),
                                   vector(rstd_copy), mask.bytes(), options);
    };
    train();
    y_copy.get(on_device);
    mean_copy.get(found_mean);
    expect(largest_difference(on_device, y) < 1e-5, "y on the device is another");
    // The device sums a lane's few elements in float32: a handful of roundings of values up to 5.
    for (std::size_t c = 0; c < mean.size(); ++c) {
        expect(std::fabs(mean[c] - found_mean[c]) < 4 * 0x1p-24 * 5,
               "a mean on the device is another");
    }

    // The caller's scratch: the same bits.
    fastnorm::Explanation explanation;
    options.explanation = &explanation;
    train();
    options.explanation = nullptr;
    const auto scratch_bytes = static_cast<std::size_t>(explanation.scratch_bytes);
    expect(explanation.launches.size() == 2 && scratch_bytes > 0, "two passes need scratch");
    const std::vector<std::uint8_t> mark(scratch_bytes, 0xab);
    const Copy scratch(mark), too_small(std::vector<std::uint8_t>(scratch_bytes - 1));
    options.scratch = scratch.bytes();
    train();
    std::vector<float> again(y.size());
    y_copy.get(again);
    expect(again == on_device, "scratch changes results");
    std::vector<std::uint8_t> written(scratch_bytes);
    scratch.get(written);
    expect(written != mark, "scratch is not used");
    options.scratch = too_small.bytes();
    expect_error<std::invalid_argument>(
        "batch_norm_train: scratch has " + std::to_string(scratch_bytes - 1) +
            " bytes, expected at least " + std::to_string(scratch_bytes),
        train);
    options.scratch = data(scratch);
    expect_error<fastnorm::dtype_error>(
        "batch_norm_train: scratch has dtype float32, expected uint8", train);
    options.scratch = TensorView(written.data(), {static_cast<std::int64_t>(scratch_bytes)});
    expect_error<std::invalid_argument>(
        "batch_norm_train: scratch is on the CPU, expected cuda:0 as x is", train);
    options.scratch = {};
    expect_error<std::invalid_argument>(
        "batch_norm_train: out is on the CPU, expected cuda:0 as x is",
        [&] { fastnorm::batch_norm_train(data(x_copy), {}, {}, x_view, {}, {}, {}, options); });

    // From C.
    const std::int64_t shape[] = {images, channels, plane}, of_channels[] = {channels};
    const fastnorm_tensor x_t =
        fastnorm_on_cuda(fastnorm_dense(x_copy.data(), FASTNORM_FLOAT32, 3, shape), 0);
    const fastnorm_tensor y_t =
        fastnorm_on_cuda(fastnorm_dense(y_copy.data(), FASTNORM_FLOAT32, 3, shape), 0);
    const fastnorm_tensor mean_t =
        fastnorm_on_cuda(fastnorm_dense(mean_copy.data(), FASTNORM_FLOAT64, 1, of_channels), 0);
    const fastnorm_tensor var_t =
        fastnorm_on_cuda(fastnorm_dense(rstd_copy.data(), FASTNORM_FLOAT64, 1, of_channels), 0);
    fastnorm_options c_options = fastnorm_defaults();
    c_options.activation.kind = FASTNORM_RELU;
    std::int64_t needed = 0;
    const std::int64_t of_scratch[] = {explanation.scratch_bytes};
    const fastnorm_tensor scratch_t =
        fastnorm_on_cuda(fastnorm_dense(scratch.data(), FASTNORM_UINT8, 1, of_scratch), 0);
    const auto train_from_c = [&] {
        return fastnorm_batch_norm_train(&x_t, nullptr, nullptr, &y_t, nullptr, nullptr,
                                         &c_options);
    };
    c_options.scratch_bytes = &needed;
    expect(train_from_c() == FASTNORM_OK && needed == explanation.scratch_bytes,
           "how much scratch C is told of");
    c_options.scratch_bytes = nullptr;
    c_options.scratch = &scratch_t;
    expect(train_from_c() == FASTNORM_OK, fastnorm_last_error());
    y_copy.get(again);
    expect(again == on_device, "scratch from C changes results");
    expect(fastnorm_batch_norm(&x_t, &mean_t, &var_t, nullptr, nullptr, &y_t, &c_options) ==
               FASTNORM_OK,
           fastnorm_last_error());
    fastnorm::batch_norm(x_view, {mean.data(), {channels}}, {rstd.data(), {channels}}, {}, {},
                         {y.data(), {images, channels, plane}}, options);
    y_copy.get(on_device);
    expect(largest_difference(on_device, y) < 1e-5, "y from C is another");
    return test_result();
}
