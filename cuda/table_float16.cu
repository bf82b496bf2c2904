#include "cuda/make_table.h"

namespace fastnorm::cuda {

const KernelTable table_float16 = make_table<Half>();

}  // namespace fastnorm::cuda
