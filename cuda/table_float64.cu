#include "cuda/make_table.h"

namespace fastnorm::cuda {

const KernelTable table_float64 = make_table<double>();

}  // namespace fastnorm::cuda
