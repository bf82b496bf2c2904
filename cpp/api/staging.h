// The one copy that the library makes: a tensor that cannot be walked in place (misaligned, strided
// within a run, in another order of dimensions than x) is copied to a dense one in x's order, and
// an output is copied back.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "api/backend.h"
#include "core/view.h"

namespace fastnorm {

class Staging {
  public:
    // With an explanation nothing is copied: it is told what would be.
    Staging(const Backend& backend, const TensorView& x, const Norm& norm,
            Explanation* explanation = nullptr);

    const View& view() const { return view_; }

    static constexpr std::int64_t signature_bytes = sizeof(std::uint64_t);
    std::int64_t mask_bytes() const;
    std::uint64_t mask_signature(const Activation& activation) const;

    // The tensor itself, or a dense stand-in for it. References stay valid.
    const TensorView& input(const char* name, const TensorView& tensor);
    const TensorView& output(const char* name, const TensorView& tensor);

    // The same for an array of one value per statistic, of any number of dimensions: numbered in C
    // order.
    PerStatistic input_values(const char* name, const TensorView& array);
    PerStatistic output_values(const char* name, const TensorView& array);

    // Binds tensors (absent ones included) to operands of the view.
    View bind(std::initializer_list<std::pair<const TensorView*, Operand*>> operands) const;

    // Writes the stand-ins of outputs to where they belong.
    void commit() const;

  private:
    struct StandIn {
        TensorView view;
        DimOrder order;
        std::shared_ptr<char> memory;
        const TensorView* result;  // of an output: where it belongs
    };
    // result: whether it is one, to be copied to the tensor.
    const TensorView& stand_in(const char* name, const TensorView& tensor, const TensorView& dense,
                               const DimOrder& order, bool result);
    PerStatistic values(const char* name, const TensorView& array, bool result);

    const Backend& backend_;
    Explanation* explanation_;
    DimOrder order_;
    View view_;
    bool centred_;
    TensorView dense_;  // x's shape, dense
    std::vector<std::unique_ptr<StandIn>> stand_ins_;
};

}  // namespace fastnorm
