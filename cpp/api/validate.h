// Every check of an argument, and every message that a user reads. The functions throw
// std::invalid_argument (dtype_error for a wrong dtype) as "op: argument has what, expected what".
#pragma once

#include <string>

#include "api/overlap.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm {

class Validation {
  public:
    explicit Validation(const char* op) : op_(op) {}

    // Data of 2 to max_dims dimensions, one of the four dtypes and a size that arithmetic on it
    // cannot exceed; returns the channel axis in [0, ndim) and remembers x's shape for what
    // follows.
    int data(const TensorView& x, int channel_axis);

    // Of x's shape and dtype.
    void like_data(const char* argument, const TensorView& tensor) const;

    // One element per channel, any of the four dtypes.
    void per_channel(const char* argument, const TensorView& vector) const;
    void per_channel_if_given(const char* argument, const TensorView& vector) const {
        if (vector.given()) per_channel(argument, vector);
    }

    void mask(const TensorView& mask, std::int64_t bytes, const Activation& of) const;
    // The signature found in a mask is that of this call.
    void mask_signature(std::uint64_t found, std::uint64_t expected) const;
    // Memory for a call on a device.
    void scratch(const TensorView& scratch) const;
    void scratch_holds(const TensorView& scratch, std::int64_t bytes) const;
    void given(const char* argument, const TensorView& tensor) const;
    void eps(double eps) const;
    void momentum(double momentum) const;
    void activation(const Activation& activation) const;
    // Training: one value per channel has no variance.
    void more_than_one_value() const;

    // An input or output of the right shape: has memory, an output memory of its own for each
    // element. Remembers it for overlap() below.
    void reads(const char* argument, const TensorView& tensor);
    // allowed: an input that the output may coincide with, element by element.
    void writes(const char* argument, const TensorView& tensor,
                const TensorView* allowed = nullptr);
    void overlap() const;

    std::int64_t elements() const;
    std::int64_t channels() const { return x_.shape[channel_axis_]; }

  private:
    struct Use {
        const char* argument;
        const TensorView* tensor;
        const TensorView* allowed;  // of a write
        bool write;
        ByteRange bytes;
    };
    static constexpr int most_uses = 16;  // more than any op has

    [[noreturn]] void fail(const std::string& what) const;
    void float_dtype(const char* argument, const TensorView& tensor) const;
    void shape(const char* argument, const TensorView& tensor, const std::int64_t* expected,
               int ndim) const;
    void strides(const char* argument, const TensorView& tensor) const;
    void memory(const char* argument, const TensorView& tensor) const;
    void device(const char* argument, const TensorView& tensor) const;
    void remember(const Use& use);

    const char* op_;
    TensorView x_{};
    int channel_axis_ = 0;
    Use uses_[most_uses];
    int use_count_ = 0;
};

// What is wrong with an activation's parameters ("clip has min 2 and max 1, expected min <= max";
// those that it does not have are 0), empty if nothing is. Its kind must be one.
std::string objection_to(const Activation& activation);

}  // namespace fastnorm
