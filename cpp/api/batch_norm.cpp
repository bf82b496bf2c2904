// The C++ entry points of batch normalization: check, bind the tensors to a view, hand over to the
// driver. This is where an op ends and the kernels' view of it begins.
#include <cstring>
#include <limits>

#include "api/staging.h"
#include "api/validate.h"
#include "core/activations.h"
#include "core/dtypes.h"
#include "cpu/dispatch.h"
#include "cpu/driver.h"

namespace fastnorm {

namespace {

Execution default_execution() {
    return {active_kernels(), openmp_parallel_for(default_threads()), thread_workspace()};
}

PerStatistic per_statistic(const TensorView& v) {
    return v.given() ? PerStatistic{static_cast<char*>(v.data), v.dtype, v.strides[0]}
                     : PerStatistic{};
}

void fill(const TensorView& v, std::int64_t count, double value) {
    for (std::int64_t i = 0; i < count; ++i) per_statistic(v).store(i, 1, &value);
}

unsigned char* rows_of(const TensorView& mask) {
    return mask.given() ? static_cast<unsigned char*>(mask.data) + Staging::signature_bytes
                        : nullptr;
}

std::uint64_t signature_of(const TensorView& mask) {
    std::uint64_t signature;
    std::memcpy(&signature, mask.data, sizeof(signature));
    return signature;
}

void sign(const TensorView& mask, std::uint64_t signature) {
    if (mask.given()) std::memcpy(mask.data, &signature, sizeof(signature));
}

// Empties the explanation, if there is one; whether the op is only to be explained.
bool begin_explanation(Explanation* explanation) {
    if (explanation != nullptr) *explanation = {};
    return explanation != nullptr;
}

// The options of any op.
template <class Options>
Problem problem_of(const TensorView& x, const Options& options, const TensorView& weight,
                   const TensorView& bias) {
    const Activation& activation = options.activation;
    Problem problem;
    problem.explanation = options.explanation;
    problem.dtype = x.dtype;
    problem.activation = activation.kind;
    problem.args.alpha = activation.alpha;
    problem.args.beta = activation.beta;
    problem.weight = per_statistic(weight);
    problem.bias = per_statistic(bias);
    return problem;
}

}  // namespace

DType batch_norm_statistics_dtype(DType x) {
    return x == DType::float16 || x == DType::bfloat16 ? DType::float32 : DType::float64;
}

std::int64_t batch_norm_mask_bytes(const TensorView& x, int channel_axis) {
    Validation check("batch_norm_mask_bytes");
    return Staging(x, check.data(x, channel_axis)).mask_bytes();
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
    check.writes("out", out, &x);
    check.reads("x", x);
    check.reads("mean", mean);
    check.reads("var", var);
    check.reads("weight", weight);
    check.reads("bias", bias);
    check.reads("residual", options.residual);
    check.overlap();
    begin_explanation(options.explanation);
    if (check.elements() == 0) return;

    Staging staging(x, channel_axis, options.explanation);
    Problem problem = problem_of(x, options, weight, bias);
    KernelArgs& args = problem.args;
    args.view = staging.bind({{&staging.input("x", x), &args.x},
                              {&staging.input("residual", options.residual), &args.residual},
                              {&staging.output("out", out), &args.y}});
    normalize(default_execution(), problem, per_statistic(mean), per_statistic(var), options.eps);
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
    check.more_than_one_value();
    Staging staging(x, channel_axis, options.explanation);
    if (mask.given()) check.mask(mask, staging.mask_bytes(), options.activation);
    check.writes("out", out, &x);
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
        fill(mean, check.channels(), std::numeric_limits<double>::quiet_NaN());
        fill(rstd, check.channels(), std::numeric_limits<double>::quiet_NaN());
        sign(mask, signature);
        return;
    }

    Problem problem = problem_of(x, options, weight, bias);
    KernelArgs& args = problem.args;
    args.mask = rows_of(mask);
    args.view = staging.bind({{&staging.input("x", x), &args.x},
                              {&staging.input("residual", options.residual), &args.residual},
                              {&staging.output("out", out), &args.y}});
    normalize_by_own_statistics(
        default_execution(), problem, options.eps, per_statistic(mean), per_statistic(rstd),
        {per_statistic(options.running_mean), per_statistic(options.running_var), options.momentum,
         options.unbiased});
    if (explained) return;
    sign(mask, signature);
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
    Staging staging(x, channel_axis, options.explanation);
    if (options.mask.given()) {
        check.mask(options.mask, staging.mask_bytes(), options.activation);
        check.mask_signature(signature_of(options.mask),
                             staging.mask_signature(options.activation));
    }
    check.writes("out", gradients.out, &dy);
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
        fill(gradients.dweight, check.channels(), 0.0);
        fill(gradients.dbias, check.channels(), 0.0);
        return;
    }

    Problem problem = problem_of(x, options, weight, bias);
    KernelArgs& args = problem.args;
    args.mask = rows_of(options.mask);
    args.view =
        staging.bind({{&staging.input("x", x), &args.x},
                      {&staging.input("dy", dy), &args.dy},
                      {&staging.input("residual", options.residual), &args.residual},
                      {&staging.output("out", gradients.out), &args.dx},
                      {&staging.output("dresidual", gradients.dresidual), &args.dresidual}});
    normalize_backward(default_execution(), problem, per_statistic(mean), per_statistic(rstd),
                       !options.training, per_statistic(gradients.dweight),
                       per_statistic(gradients.dbias));
    staging.commit();
}

}  // namespace fastnorm
