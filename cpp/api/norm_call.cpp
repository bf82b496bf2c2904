#include "api/norm_call.h"

#include <cstring>
#include <limits>

#include "api/backend.h"
#include "api/staging.h"
#include "core/activations.h"
#include "core/dtypes.h"

namespace fastnorm {

namespace {

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

std::int64_t count_of(const Extents& extents) {
    std::int64_t count = 1;
    for (int i = 0; i < extents.ndim; ++i) count *= extents.extent[i];
    return count;
}

// The options of any op.
template <class Options>
Problem problem_of(const Validation& check, Staging& staging, const TensorView& x,
                   const Options& options, const TensorView& weight, const TensorView& bias) {
    const Activation& activation = options.activation;
    Problem problem;
    problem.explanation = options.explanation;
    problem.dtype = x.dtype;
    problem.activation = activation.kind;
    problem.tensors.alpha = activation.alpha;
    problem.tensors.beta = activation.beta;
    problem.weight = staging.input_values("weight", weight);
    problem.bias = staging.input_values("bias", bias);
    if (options.scratch.given()) {
        problem.scratch = [&](std::int64_t bytes) {
            check.scratch_holds(options.scratch, bytes);
            return static_cast<char*>(options.scratch.data);
        };
    }
    return problem;
}

void set_features(Problem& problem, const Norm& norm, const FeatureArguments& features) {
    problem.weight_offset = features.weight_offset;
    problem.tensors.centred = norm.centred;
    problem.tensors.cast_before_weight = features.cast_before_weight;
}

}  // namespace

NormSizes sizes_of(const Validation& check, const Norm& norm, const TensorView& x) {
    const auto backend = backend_of(check.op(), x.device, nullptr);
    return {
        check.parameters(), check.statistics(),
        x.dtype == DType::float16 || x.dtype == DType::bfloat16 ? DType::float32 : DType::float64,
        Staging(*backend, x, norm).mask_bytes()};
}

void normalize_by_given(Validation& check, const Norm& norm, const TensorView& x,
                        const TensorView& mean, const TensorView& var, const TensorView& weight,
                        const TensorView& bias, const TensorView& out, const NormOptions& options) {
    check.statistic("mean", mean);
    check.statistic("var", var);
    check.parameter_if_given("weight", weight);
    check.parameter_if_given("bias", bias);
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

    const auto backend = backend_of(check.op(), x.device, options.stream);
    Staging staging(*backend, x, norm, options.explanation);
    Problem problem = problem_of(check, staging, x, options, weight, bias);
    Tensors& tensors = problem.tensors;
    tensors.view = staging.bind({{&staging.input("x", x), &tensors.x},
                                 {&staging.input("residual", options.residual), &tensors.residual},
                                 {&staging.output("out", out), &tensors.y}});
    backend->normalize(problem, staging.input_values("mean", mean),
                       staging.input_values("var", var), options.eps);
    staging.commit();
}

void normalize_by_own(Validation& check, const Norm& norm, const TensorView& x,
                      const TensorView& weight, const TensorView& bias, const TensorView& out,
                      const SavedStatistics& saved, const NormOptions& options,
                      const RunningViews& running, const FeatureArguments& features) {
    check.parameter_if_given("weight", weight);
    check.parameter_if_given("bias", bias);
    check.parameter_if_given("running_mean", running.mean);
    check.parameter_if_given("running_var", running.var);
    if (options.residual.given()) check.like_data("residual", options.residual);
    if (features.sum.given()) check.sum_of(features.sum, options.residual);
    check.like_data("out", out);
    check.statistic_if_given("mean", saved.mean);
    check.statistic_if_given("rstd", saved.rstd);
    check.eps(options.eps);
    check.momentum(running.momentum);
    check.activation(options.activation);
    if (options.scratch.given()) check.scratch(options.scratch);
    check.more_than_one_value(running.needs_variance);
    const auto backend = backend_of(check.op(), x.device, options.stream);
    Staging staging(*backend, x, norm, options.explanation);
    if (saved.mask.given()) check.mask(saved.mask, staging.mask_bytes(), options.activation);
    check.writes("out", out, &x);
    check.writes("sum_out", features.sum, &options.residual);
    check.writes("scratch", options.scratch);
    check.writes("running_mean", running.mean);
    check.writes("running_var", running.var);
    check.writes("mean", saved.mean);
    check.writes("rstd", saved.rstd);
    check.writes("mask", saved.mask);
    check.reads("x", x);
    check.reads("weight", weight);
    check.reads("bias", bias);
    check.reads("residual", options.residual);
    check.overlap();
    const std::uint64_t signature = staging.mask_signature(options.activation);
    const bool explained = begin_explanation(options.explanation);
    const PerStatistic mean = staging.output_values("mean", saved.mean);
    const PerStatistic rstd = staging.output_values("rstd", saved.rstd);
    if (check.elements() == 0) {
        if (explained) return;
        constexpr double nan = std::numeric_limits<double>::quiet_NaN();
        backend->fill(mean, count_of(check.statistics()), nan);
        backend->fill(rstd, count_of(check.statistics()), nan);
        sign(*backend, saved.mask, signature);
        staging.commit();
        return;
    }

    Problem problem = problem_of(check, staging, x, options, weight, bias);
    Tensors& tensors = problem.tensors;
    tensors.mask = bits_of(*backend, saved.mask);
    tensors.mask_signature = signature;
    tensors.view = staging.bind({{&staging.input("x", x), &tensors.x},
                                 {&staging.input("residual", options.residual), &tensors.residual},
                                 {&staging.output("sum_out", features.sum), &tensors.sum},
                                 {&staging.output("out", out), &tensors.y}});
    set_features(problem, norm, features);
    backend->normalize_by_own_statistics(
        problem, options.eps, mean, rstd,
        {staging.output_values("running_mean", running.mean),
         staging.output_values("running_var", running.var), running.momentum, running.unbiased});
    if (explained) return;
    sign(*backend, saved.mask, signature);
    staging.commit();
}

void differentiate(Validation& check, const Norm& norm, const TensorView& dy, const TensorView& x,
                   const TensorView& mean, const TensorView& rstd, const TensorView& weight,
                   const TensorView& bias, const NormGradients& gradients,
                   const NormBackwardOptions& options, bool frozen,
                   const FeatureArguments& features) {
    check.like_data("dy", dy);
    if (norm.centred) check.statistic("mean", mean);
    check.statistic("rstd", rstd);
    check.parameter_if_given("weight", weight);
    check.parameter_if_given("bias", bias);
    if (options.residual.given()) check.like_data("residual", options.residual);
    check.like_data("out", gradients.out);
    check.parameter_if_given("dweight", gradients.dweight);
    check.parameter_if_given("dbias", gradients.dbias);
    if (gradients.dresidual.given()) check.like_data("dresidual", gradients.dresidual);
    if (features.dsum.given()) {
        check.sum_gradient(features.dsum, options.residual.given() || gradients.dresidual.given());
    }
    check.activation(options.activation);
    if (options.scratch.given()) check.scratch(options.scratch);
    const auto backend = backend_of(check.op(), x.device, options.stream);
    Staging staging(*backend, x, norm, options.explanation);
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
    check.reads("dsum", features.dsum);
    check.overlap();
    const bool explained = begin_explanation(options.explanation);
    const PerStatistic dweight = staging.output_values("dweight", gradients.dweight);
    const PerStatistic dbias = staging.output_values("dbias", gradients.dbias);
    if (check.elements() == 0) {
        if (explained) return;
        backend->fill(dweight, count_of(check.parameters()), 0.0);
        backend->fill(dbias, count_of(check.parameters()), 0.0);
        staging.commit();
        return;
    }

    Problem problem = problem_of(check, staging, x, options, weight, bias);
    Tensors& tensors = problem.tensors;
    tensors.mask = bits_of(*backend, options.mask);
    tensors.mask_signature = signature;
    tensors.view =
        staging.bind({{&staging.input("x", x), &tensors.x},
                      {&staging.input("dy", dy), &tensors.dy},
                      {&staging.input("residual", options.residual), &tensors.residual},
                      {&staging.input("dsum", features.dsum), &tensors.dsum},
                      {&staging.output("out", gradients.out), &tensors.dx},
                      {&staging.output("dresidual", gradients.dresidual), &tensors.dresidual}});
    set_features(problem, norm, features);
    backend->normalize_backward(problem, staging.input_values("mean", mean),
                                staging.input_values("rstd", rstd), frozen, dweight, dbias);
    staging.commit();
}

}  // namespace fastnorm
