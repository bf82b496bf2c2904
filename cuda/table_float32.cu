#include "cuda/make_table.h"

namespace fastnorm::cuda {

const KernelTable table_float32 = make_table<float>();

}  // namespace fastnorm::cuda
