// The C++ entry points of the norms. This is where an op ends and the kernels' view of it begins.
#include "api/norm_call.h"

namespace fastnorm {

NormSizes batch_norm_sizes(const TensorView& x, int channel_axis) {
    Validation check("batch_norm_sizes");
    const Norm norm = check.batch_norm(x, channel_axis);
    return sizes_of(check, norm, x);
}

void batch_norm(const TensorView& x, const TensorView& mean, const TensorView& var,
                const TensorView& weight, const TensorView& bias, const TensorView& out,
                const BatchNormOptions& options) {
    Validation check("batch_norm");
    const Norm norm = check.batch_norm(x, options.channel_axis);
    normalize_by_given(check, norm, x, mean, var, weight, bias, out, options);
}

void batch_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                      const TensorView& out, const TensorView& mean, const TensorView& rstd,
                      const TensorView& mask, const BatchNormTrainOptions& options) {
    Validation check("batch_norm_train");
    const Norm norm = check.batch_norm(x, options.channel_axis);
    normalize_by_own(check, norm, x, weight, bias, out, {mean, rstd, mask}, options,
                     {options.running_mean, options.running_var, options.momentum,
                      options.unbiased, "in training"});
}

void batch_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                         const TensorView& rstd, const TensorView& weight, const TensorView& bias,
                         const NormGradients& gradients, const BatchNormBackwardOptions& options) {
    Validation check("batch_norm_backward");
    const Norm norm = check.batch_norm(x, options.channel_axis);
    differentiate(check, norm, dy, x, mean, rstd, weight, bias, gradients, options,
                  !options.training);
}

NormSizes group_norm_sizes(const TensorView& x, std::int64_t groups, int channel_axis) {
    Validation check("group_norm_sizes");
    const Norm norm = check.group_norm(x, groups, channel_axis);
    return sizes_of(check, norm, x);
}

void group_norm(const TensorView& x, std::int64_t groups, const TensorView& weight,
                const TensorView& bias, const TensorView& out, const GroupNormOptions& options) {
    Validation check("group_norm");
    const Norm norm = check.group_norm(x, groups, options.channel_axis);
    normalize_by_own(check, norm, x, weight, bias, out, {}, options, {});
}

void group_norm_train(const TensorView& x, std::int64_t groups, const TensorView& weight,
                      const TensorView& bias, const TensorView& out, const TensorView& mean,
                      const TensorView& rstd, const TensorView& mask,
                      const GroupNormOptions& options) {
    Validation check("group_norm_train");
    const Norm norm = check.group_norm(x, groups, options.channel_axis);
    normalize_by_own(check, norm, x, weight, bias, out, {mean, rstd, mask}, options, {});
}

void group_norm_backward(const TensorView& dy, const TensorView& x, std::int64_t groups,
                         const TensorView& mean, const TensorView& rstd, const TensorView& weight,
                         const TensorView& bias, const NormGradients& gradients,
                         const GroupNormBackwardOptions& options) {
    Validation check("group_norm_backward");
    const Norm norm = check.group_norm(x, groups, options.channel_axis);
    differentiate(check, norm, dy, x, mean, rstd, weight, bias, gradients, options, false);
}

NormSizes instance_norm_sizes(const TensorView& x, int channel_axis) {
    Validation check("instance_norm_sizes");
    const Norm norm = check.instance_norm(x, channel_axis);
    return sizes_of(check, norm, x);
}

void instance_norm(const TensorView& x, const TensorView& weight, const TensorView& bias,
                   const TensorView& out, const GroupNormOptions& options) {
    Validation check("instance_norm");
    const Norm norm = check.instance_norm(x, options.channel_axis);
    normalize_by_own(check, norm, x, weight, bias, out, {}, options, {});
}

void instance_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                         const TensorView& out, const TensorView& mean, const TensorView& rstd,
                         const TensorView& mask, const InstanceNormOptions& options) {
    Validation check("instance_norm_train");
    const Norm norm = check.instance_norm(x, options.channel_axis);
    const bool unbiased = options.running_var.given() && options.unbiased;
    normalize_by_own(check, norm, x, weight, bias, out, {mean, rstd, mask}, options,
                     {options.running_mean, options.running_var, options.momentum,
                      options.unbiased, unbiased ? "for an unbiased running_var" : nullptr});
}

void instance_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                            const TensorView& rstd, const TensorView& weight,
                            const TensorView& bias, const NormGradients& gradients,
                            const GroupNormBackwardOptions& options) {
    Validation check("instance_norm_backward");
    const Norm norm = check.instance_norm(x, options.channel_axis);
    differentiate(check, norm, dy, x, mean, rstd, weight, bias, gradients, options, false);
}

}  // namespace fastnorm
