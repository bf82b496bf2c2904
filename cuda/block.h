// What a kernel may ask of the machine: thread ids, barriers, exchanges between lanes, shared
// memory, clusters, 16-byte accesses. Kernels reach the hardware through a Block alone, and there
// are two of them: that of the device, and one that runs each thread of a block as a fibre on the
// CPU, with which the tests run these very sources where there is no GPU.
//
// clang-format off
//   thread() threads() lane() warp() warps()   within the block
//   index() blocks()                           of the grid
//   sync()                                     a barrier; every thread takes part
//   exchange(value, mask)                      the value of lane ^ mask; the whole warp takes part
//   any(condition)                             whether it holds in a lane; the whole warp takes part
//   shared()                                   the block's memory, uninitialized, 16-byte aligned
//   arrive_at_cluster() wait_for_cluster()     the two halves of a barrier of the cluster
//   sync_grid()                                a barrier of all blocks, where all are resident. What
//                                              was published before it is fresh after it
//   of_peer(p, rank)                           where a cluster's block has what lies at p here
//   load(p) store(p, pack)                     16 aligned bytes of global memory
//   load_element(p) store_element(p, value)    one element of it
//   copy(to, from) wait_for_copies()           16 bytes, global to shared, behind the thread's
//                                              back: visible to it after the wait
//   publish(p, value) fresh(p)                 values for other blocks, past the caches of a
//                                              multiprocessor
//   add(counter, n)                            atomically, after what this thread has written; the
//                                              old value. What others wrote before adding is
//                                              visible after it
// clang-format on
//
// and, from the CPU, launch(op, kernel, shape, stream), where kernel(block) is what each thread
// does and op names the caller in errors.
#pragma once

#include <cstdint>

#include "cuda/machine.h"
#include "cuda/pack.h"

namespace fastnorm::cuda {

// Whether what is accessed will be needed again soon, from the L2 cache.
enum class Reuse { none, soon };

}  // namespace fastnorm::cuda

#ifdef FASTNORM_BLOCK_HEADER
#include FASTNORM_BLOCK_HEADER
#else
#include "cuda/block_device.h"
#endif
