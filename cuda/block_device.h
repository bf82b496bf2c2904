// The Block of the device. See block.h.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "cuda/block.h"
#include "cuda/runtime.h"

#define FASTNORM_DEVICE __device__ __forceinline__

namespace fastnorm::cuda {

// --- scalars as a value type: what core/elementary.h asks of one

FASTNORM_DEVICE float widen(float x) { return x; }
FASTNORM_DEVICE double widen(double x) { return x; }
FASTNORM_DEVICE float widen(BFloat16 x) { return to_float(x); }
FASTNORM_DEVICE float widen(Half x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

FASTNORM_DEVICE void narrow(float x, float& to) { to = x; }
FASTNORM_DEVICE void narrow(double x, double& to) { to = x; }
FASTNORM_DEVICE void narrow(float x, Half& to) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}
FASTNORM_DEVICE void narrow(float x, BFloat16& to) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}

class Block {
  public:
    FASTNORM_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
    FASTNORM_DEVICE int threads() const { return static_cast<int>(blockDim.x); }
    FASTNORM_DEVICE int lane() const { return thread() % warp_size; }
    FASTNORM_DEVICE int warp() const { return thread() / warp_size; }
    FASTNORM_DEVICE int warps() const { return threads() / warp_size; }
    FASTNORM_DEVICE std::int64_t index() const { return blockIdx.x; }
    FASTNORM_DEVICE std::int64_t blocks() const { return gridDim.x; }

    FASTNORM_DEVICE void sync() const { __syncthreads(); }
    FASTNORM_DEVICE void sync_grid() const { cooperative_groups::this_grid().sync(); }
    template <class A>
    FASTNORM_DEVICE A exchange(A value, int mask) const {
        return __shfl_xor_sync(~0u, value, mask);
    }
    FASTNORM_DEVICE bool any(bool condition) const { return __any_sync(~0u, condition); }
    FASTNORM_DEVICE char* shared() const {
        extern __shared__ __align__(16) char memory[];
        return memory;
    }

#if __CUDA_ARCH__ >= 900
    FASTNORM_DEVICE void arrive_at_cluster() const {
        asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    }
    FASTNORM_DEVICE void wait_for_cluster() const {
        asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
    }
    template <class V>
    FASTNORM_DEVICE const V* of_peer(const V* p, int rank) const {
        const V* peer;
        asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(p), "r"(rank));
        return peer;
    }
#else
    FASTNORM_DEVICE void arrive_at_cluster() const { __syncthreads(); }
    FASTNORM_DEVICE void wait_for_cluster() const {}
    template <class V>
    FASTNORM_DEVICE const V* of_peer(const V* p, int) const {
        return p;
    }
#endif

    template <class T>
    FASTNORM_DEVICE Pack<T> load(const char* p, Reuse reuse) const {
        uint4 w;
        if (reuse == Reuse::soon) {
            asm volatile("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                         : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                         : "l"(p), "l"(evict_last()));
        } else {
            asm volatile("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                         : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                         : "l"(p), "l"(evict_first()));
        }
        return bit_copy<Pack<T>>(w);
    }
    template <class T>
    FASTNORM_DEVICE void store(char* p, const Pack<T>& pack) const {
        const uint4 w = bit_copy<uint4>(pack);
        asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(p),
                     "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(evict_first())
                     : "memory");
    }
    template <class V>
    FASTNORM_DEVICE V load_element(const V* p) const {
        return *p;
    }
    template <class V>
    FASTNORM_DEVICE void store_element(V* p, V value) const {
        *p = value;
    }
    FASTNORM_DEVICE void copy(char* to, const char* from) const {
        const auto offset = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(offset),
                     "l"(from), "l"(evict_first())
                     : "memory");
    }
    FASTNORM_DEVICE void wait_for_copies() const {
        asm volatile("cp.async.wait_all;" ::: "memory");
    }

    template <class V>
    FASTNORM_DEVICE void publish(V* p, V value) const {
        __stcg(p, value);
    }
    template <class V>
    FASTNORM_DEVICE V fresh(const V* p) const {
        return __ldcg(p);
    }
    FASTNORM_DEVICE std::uint32_t add(std::uint32_t* counter, std::uint32_t n) const {
        __threadfence();
        const std::uint32_t old = atomicAdd(counter, n);
        __threadfence();
        return old;
    }

  private:
    FASTNORM_DEVICE static std::uint64_t evict_first() {
        std::uint64_t policy;
        asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
        return policy;
    }
    FASTNORM_DEVICE static std::uint64_t evict_last() {
        std::uint64_t policy;
        asm("createpolicy.fractional.L2::evict_last.b64 %0;" : "=l"(policy));
        return policy;
    }
};

// --- launches

template <class Kernel>
__global__ void __launch_bounds__(Kernel::most_threads, Kernel::least_blocks)
    run(const __grid_constant__ Kernel kernel) {
    kernel(Block());
}

template <class Kernel>
void launch(const char* op, const Kernel& kernel, const Shape& shape, Stream stream) {
    Kernel copy = kernel;
    void* arguments[] = {&copy};
    launch_kernel(op, Kernel::name, reinterpret_cast<const void*>(&run<Kernel>), arguments, shape,
                  stream);
}

}  // namespace fastnorm::cuda
