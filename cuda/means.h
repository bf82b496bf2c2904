// What statistics that share a mean make together, from the totals that a Reduce has left of each.
#pragma once

#include "cuda/arguments.h"
#include "cuda/driver.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

// Sets all of args.of_means.
void merge_totals(const Execution& execution, const Arguments& args, Direction direction);

}  // namespace fastnorm::cuda
