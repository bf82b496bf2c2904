// A tensor's elements into another one of its shape and dtype, whatever their strides and
// alignment.
#pragma once

#include "core/view.h"

namespace fastnorm {

// One by one, in the given order of dimensions.
void copy_elements(const TensorView& to, const TensorView& from, const DimOrder& order);

}  // namespace fastnorm
