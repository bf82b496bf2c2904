#include "cuda/make_table.h"

namespace fastnorm::cuda {

const KernelTable table_bfloat16 = make_table<BFloat16>();

}  // namespace fastnorm::cuda
