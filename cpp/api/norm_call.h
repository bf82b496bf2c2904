// The calls that every norm's public functions come down to: check, bind the tensors to the norm's
// view, hand over to the backend. What an op has said of x is checked already (Validation's
// batch_norm() and its like, which give the norm).
#pragma once

#include "api/validate.h"
#include "core/view.h"

namespace fastnorm {

struct SavedStatistics {
    TensorView mean{}, rstd{}, mask{};
};

struct RunningViews {
    TensorView mean{}, var{};
    double momentum = 0.0;
    bool unbiased = true;
    NeedsVariance needs_variance = NeedsVariance::nothing;
};

// What norms of features have beside.
struct FeatureArguments {
    double weight_offset = 0.0;
    bool cast_before_weight = false;
    TensorView sum{}, dsum{};
};

void normalize_by_given(Validation& check, const Norm& norm, const TensorView& x,
                        const TensorView& mean, const TensorView& var, const TensorView& weight,
                        const TensorView& bias, const TensorView& out, const NormOptions& options);

void normalize_by_own(Validation& check, const Norm& norm, const TensorView& x,
                      const TensorView& weight, const TensorView& bias, const TensorView& out,
                      const SavedStatistics& saved, const NormOptions& options,
                      const RunningViews& running, const FeatureArguments& features = {});

void differentiate(Validation& check, const Norm& norm, const TensorView& dy, const TensorView& x,
                   const TensorView& mean, const TensorView& rstd, const TensorView& weight,
                   const TensorView& bias, const NormGradients& gradients,
                   const NormBackwardOptions& options, bool frozen,
                   const FeatureArguments& features = {});

NormSizes sizes_of(const Validation& check, const Norm& norm, const TensorView& x);

}  // namespace fastnorm
