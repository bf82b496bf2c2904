// A view as the kernels take it: how it is cut into chunks and parts, and whether they can read it
// pack by pack. By the view and the dtype alone, so that the bits of a result follow from these.
#pragma once

#include <initializer_list>

#include "core/dtypes.h"
#include "core/view.h"
#include "cuda/arguments.h"

namespace fastnorm::cuda {

Rows rows_of(const View& view, DType dtype);

// Under features.
RowParts row_parts_of(const Rows& rows);

// Whether every pack of every run is 16 aligned bytes.
bool packs_are_whole(const View& view, DType dtype, int width,
                     std::initializer_list<const Operand*> operands);

// How many neighbouring statistics make a row of whole packs; 0 where they do not lie so.
std::int64_t granule_of(const View& view, DType dtype,
                        std::initializer_list<const Operand*> operands);

}  // namespace fastnorm::cuda
