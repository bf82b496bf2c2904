// The C++ entry points of batch normalization: check, bind the tensors to a view, hand over to the
// backend. This is where an op ends and the kernels' view of it begins.
#include <cstring>
#include <limits>

#include "api/backend.h"
#include "api/staging.h"
#include "api/validate.h"
#include "core/activations.h"
#include "core/dtypes.h"

namespace fastnorm {

namespace {

PerStatistic per_statistic(const TensorView& v) {
    return v.given() ? PerStatistic{static_cast<char*>(v.data), v.dtype, v.strides[0]}
                     : PerStatistic{};
}

// Where the backend's kernels look for the mask's bits.
unsigned char* bits_of(const Backend& backend, const TensorView& mask) {
    if (!mask.given()) return nullptr;
    return static_cast<unsigned char*>(mask.data) +
           (backend.kernels_sign() ? 0 : Staging::signature_bytes);
}

std::uint64_t signature_of(const TensorView& mask) {
    std::uint64_t signature;
    std::memcpy(&signature, mask.data, sizeof(signature));
    return signature;
}

void sign(const Backend& backend, const TensorView& mask, std::uint64_t signature) {
    if (mask.given() && !backend.kernels_sign()) {
        std::memcpy(mask.data, &signature, sizeof(signature));
    }
}

// Empties the explanation, if there is one; whether the op is only to be explained.
bool begin_explanation(Explanation* explanation) {
    if (explanation != nullptr) *explanation = {};
    return explanation != nullptr;
}

// The options of any op.
template <class Options>
Problem problem_of(const Validation& check, const TensorView& x, const Options& options,
                   const TensorView& weight, const TensorView& bias) {
    const Activation& activation = options.activation;
    Problem problem;
    problem.explanation = options.explanation;
    problem.dtype = x.dtype;
    problem.activation = activation.kind;
    problem.tensors.alpha = activation.alpha;
    problem.tensors.beta = activation.beta;
    problem.weight = per_statistic(weight);
    problem.bias = per_statistic(bias);
    if (options.scratch.given()) {
        problem.scratch = [&](std::int64_t bytes) {
            check.scratch_holds(options.scratch, bytes);
            return static_cast<char*>(options.scratch.data);
        };
    }
    return problem;
}

}  // namespace

DType batch_norm_statistics_dtype(DType x) {
    return x == DType::float16 || x == DType::bfloat16 ? DType::float32 : DType::float64;
}

std::int64_t batch_norm_mask_bytes(const TensorView& x, int channel_axis) {
    Validation check("batch_norm_mask_bytes");
    const int axis = check.data(x, channel_axis);
    const auto backend = backend_of("batch_norm_mask_bytes", x.device, nullptr);
    return Staging(*backend, x, axis).mask_bytes();
}

void batch_norm(const TensorView& x, const TensorView& mean, const TensorView& var,
                const TensorView& weight, const TensorView& bias, const TensorView& out,
                const BatchNormOptions& options) {
    Validation check("batch_norm");
    const int channel_axis = check.data(x, options.channel_axis);
    check.per_channel("mean", mean);
    check.per_channel("var", var);
    check.per_channel_if_given("weight", weight);
    check.per_channel_if_given("bias", bias);
    if (options.residual.given()) check.like_data("residual", options.residual);
    check.like_data("out", out);
    check.eps(options.eps);
    check.activation(options.activation);
    if (options.scratch.given()) check.scratch(options.scratch);
    check.writes("out", out, &x);
    check.writes("scratch", options.scratch);
    check.reads("x", x);
    check.reads("mean", mean);
    check.reads("var", var);
    check.reads("weight", weight);
    check.reads("bias", bias);
    check.reads("residual", options.residual);
    check.overlap();
    begin_explanation(options.explanation);
    if (check.elements() == 0) return;

    const auto backend = backend_of("batch_norm", x.device, options.stream);
    Staging staging(*backend, x, channel_axis, options.explanation);
    Problem problem = problem_of(check, x, options, weight, bias);
    Tensors& tensors = problem.tensors;
    tensors.view = staging.bind({{&staging.input("x", x), &tensors.x},
                                 {&staging.input("residual", options.residual), &tensors.residual},
                                 {&staging.output("out", out), &tensors.y}});
    backend->normalize(problem, per_statistic(mean), per_statistic(var), options.eps);
    staging.commit();
}

void batch_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                      const TensorView& out, const TensorView& mean, const TensorView& rstd,
                      const TensorView& mask, const BatchNormTrainOptions& options) {
    Validation check("batch_norm_train");
    const int channel_axis = check.data(x, options.channel_axis);
    check.per_channel_if_given("weight", weight);
    check.per_channel_if_given("bias", bias);
    check.per_channel_if_given("running_mean", options.running_mean);
    check.per_channel_if_given("running_var", options.running_var);
    if (options.residual.given()) check.like_data("residual", options.residual);
    check.like_data("out", out);
    check.per_channel_if_given("mean", mean);
    check.per_channel_if_given("rstd", rstd);
    check.eps(options.eps);
    check.momentum(options.momentum);
    check.activation(options.activation);
    if (options.scratch.given()) check.scratch(options.scratch);
    check.more_than_one_value();
    const auto backend = backend_of("batch_norm_train", x.device, options.stream);
    Staging staging(*backend, x, channel_axis, options.explanation);
    if (mask.given()) check.mask(mask, staging.mask_bytes(), options.activation);
    check.writes("out", out, &x);
    check.writes("scratch", options.scratch);
    check.writes("running_mean", options.running_mean);
    check.writes("running_var", options.running_var);
    check.writes("mean", mean);
    check.writes("rstd", rstd);
    check.writes("mask", mask);
    check.reads("x", x);
    check.reads("weight", weight);
    check.reads("bias", bias);
    check.reads("residual", options.residual);
    check.overlap();
    const std::uint64_t signature = staging.mask_signature(options.activation);
    const bool explained = begin_explanation(options.explanation);
    if (check.elements() == 0) {
        if (explained) return;
        constexpr double nan = std::numeric_limits<double>::quiet_NaN();
        backend->fill(per_statistic(mean), check.channels(), nan);
        backend->fill(per_statistic(rstd), check.channels(), nan);
        sign(*backend, mask, signature);
        return;
    }

    Problem problem = problem_of(check, x, options, weight, bias);
    Tensors& tensors = problem.tensors;
    tensors.mask = bits_of(*backend, mask);
    tensors.mask_signature = signature;
    tensors.view = staging.bind({{&staging.input("x", x), &tensors.x},
                                 {&staging.input("residual", options.residual), &tensors.residual},
                                 {&staging.output("out", out), &tensors.y}});
    backend->normalize_by_own_statistics(
        problem, options.eps, per_statistic(mean), per_statistic(rstd),
        {per_statistic(options.running_mean), per_statistic(options.running_var), options.momentum,
         options.unbiased});
    if (explained) return;
    sign(*backend, mask, signature);
    staging.commit();
}

void batch_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                         const TensorView& rstd, const TensorView& weight, const TensorView& bias,
                         const BatchNormGradients& gradients,
                         const BatchNormBackwardOptions& options) {
    Validation check("batch_norm_backward");
    const int channel_axis = check.data(x, options.channel_axis);
    check.like_data("dy", dy);
    check.per_channel("mean", mean);
    check.per_channel("rstd", rstd);
    check.per_channel_if_given("weight", weight);
    check.per_channel_if_given("bias", bias);
    if (options.residual.given()) check.like_data("residual", options.residual);
    check.like_data("out", gradients.out);
    check.per_channel_if_given("dweight", gradients.dweight);
    check.per_channel_if_given("dbias", gradients.dbias);
    if (gradients.dresidual.given()) check.like_data("dresidual", gradients.dresidual);
    check.activation(options.activation);
    if (options.scratch.given()) check.scratch(options.scratch);
    const auto backend = backend_of("batch_norm_backward", x.device, options.stream);
    Staging staging(*backend, x, channel_axis, options.explanation);
    const std::uint64_t signature = staging.mask_signature(options.activation);
    if (options.mask.given()) {
        check.mask(options.mask, staging.mask_bytes(), options.activation);
        if (!backend->kernels_sign()) {
            check.mask_signature(signature_of(options.mask), signature);
        }
    }
    check.writes("out", gradients.out, &dy);
    check.writes("scratch", options.scratch);
    check.writes("dweight", gradients.dweight);
    check.writes("dbias", gradients.dbias);
    check.writes("dresidual", gradients.dresidual);
    check.reads("dy", dy);
    check.reads("x", x);
    check.reads("mean", mean);
    check.reads("rstd", rstd);
    check.reads("weight", weight);
    check.reads("bias", bias);
    check.reads("residual", options.residual);
    check.reads("mask", options.mask);
    check.overlap();
    const bool explained = begin_explanation(options.explanation);
    if (check.elements() == 0) {
        if (explained) return;
        backend->fill(per_statistic(gradients.dweight), check.channels(), 0.0);
        backend->fill(per_statistic(gradients.dbias), check.channels(), 0.0);
        return;
    }

    Problem problem = problem_of(check, x, options, weight, bias);
    Tensors& tensors = problem.tensors;
    tensors.mask = bits_of(*backend, options.mask);
    tensors.mask_signature = signature;
    tensors.view =
        staging.bind({{&staging.input("x", x), &tensors.x},
                      {&staging.input("dy", dy), &tensors.dy},
                      {&staging.input("residual", options.residual), &tensors.residual},
                      {&staging.output("out", gradients.out), &tensors.dx},
                      {&staging.output("dresidual", gradients.dresidual), &tensors.dresidual}});
    backend->normalize_backward(problem, per_statistic(mean), per_statistic(rstd),
                                !options.training, per_statistic(gradients.dweight),
                                per_statistic(gradients.dbias));
    staging.commit();
}

}  // namespace fastnorm
