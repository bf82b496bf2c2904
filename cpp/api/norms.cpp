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
                     {options.running_mean, options.running_var, options.momentum, options.unbiased,
                      NeedsVariance::training});
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
                     {options.running_mean, options.running_var, options.momentum, options.unbiased,
                      unbiased ? NeedsVariance::running_var : NeedsVariance::nothing});
}

void instance_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                            const TensorView& rstd, const TensorView& weight,
                            const TensorView& bias, const NormGradients& gradients,
                            const GroupNormBackwardOptions& options) {
    Validation check("instance_norm_backward");
    const Norm norm = check.instance_norm(x, options.channel_axis);
    differentiate(check, norm, dy, x, mean, rstd, weight, bias, gradients, options, false);
}

NormSizes layer_norm_sizes(const TensorView& x, int axis) {
    Validation check("layer_norm_sizes");
    const Norm norm = check.features(x, axis);
    return sizes_of(check, norm, x);
}

namespace {

void normalize_features(const char* op, const TensorView& x, const TensorView& weight,
                        const TensorView& bias, const TensorView& out, const SavedStatistics& saved,
                        const LayerNormOptions& options, bool centred, bool cast_before_weight) {
    Validation check(op);
    Norm norm = check.features(x, options.axis);
    norm.centred = centred;
    check.weight_offset(options.weight_offset);
    normalize_by_own(check, norm, x, weight, bias, out, saved, options, {},
                     {options.weight_offset, cast_before_weight, options.sum_out, {}});
}

void differentiate_features(const char* op, const TensorView& dy, const TensorView& x,
                            const TensorView& mean, const TensorView& rstd,
                            const TensorView& weight, const TensorView& bias,
                            const NormGradients& gradients, const LayerNormBackwardOptions& options,
                            bool centred) {
    Validation check(op);
    Norm norm = check.features(x, options.axis);
    norm.centred = centred;
    check.weight_offset(options.weight_offset);
    differentiate(check, norm, dy, x, mean, rstd, weight, bias, gradients, options, false,
                  {options.weight_offset, false, {}, options.dsum});
}

}  // namespace

void layer_norm(const TensorView& x, const TensorView& weight, const TensorView& bias,
                const TensorView& out, const LayerNormOptions& options) {
    normalize_features("layer_norm", x, weight, bias, out, {}, options, true, false);
}

void layer_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                      const TensorView& out, const TensorView& mean, const TensorView& rstd,
                      const TensorView& mask, const LayerNormOptions& options) {
    normalize_features("layer_norm_train", x, weight, bias, out, {mean, rstd, mask}, options, true,
                       false);
}

void layer_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                         const TensorView& rstd, const TensorView& weight, const TensorView& bias,
                         const NormGradients& gradients, const LayerNormBackwardOptions& options) {
    differentiate_features("layer_norm_backward", dy, x, mean, rstd, weight, bias, gradients,
                           options, true);
}

void rms_norm(const TensorView& x, const TensorView& weight, const TensorView& bias,
              const TensorView& out, const RMSNormOptions& options) {
    normalize_features("rms_norm", x, weight, bias, out, {}, options, false,
                       options.cast_before_weight);
}

void rms_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                    const TensorView& out, const TensorView& rstd, const TensorView& mask,
                    const RMSNormOptions& options) {
    normalize_features("rms_norm_train", x, weight, bias, out, {{}, rstd, mask}, options, false,
                       options.cast_before_weight);
}

void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& rstd,
                       const TensorView& weight, const TensorView& bias,
                       const NormGradients& gradients, const LayerNormBackwardOptions& options) {
    differentiate_features("rms_norm_backward", dy, x, {}, rstd, weight, bias, gradients, options,
                           false);
}

}  // namespace fastnorm
