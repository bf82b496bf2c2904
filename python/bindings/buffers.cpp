#include "buffers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace fastnorm::python {

namespace {

constexpr std::size_t default_limit = std::size_t{512} << 20;
constexpr std::size_t huge_page = std::size_t{2} << 20;
// Blocks of a few sizes: one serves results that are a little smaller. More would be left over.
constexpr std::size_t size_steps = 8;

std::size_t physical_memory() {
    return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
           static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// Up to the next multiple of an eighth of the power of two below it.
std::size_t rounded_up(std::size_t bytes) {
    std::size_t power = Buffers::least_bytes;
    while (power <= bytes / 2) power *= 2;
    const std::size_t step = power / size_steps;
    return (bytes + step - 1) / step * step;
}

Buffers::Block map(std::size_t bytes) {
    // A huge page's alignment is worth more than what is cut off again.
    const std::size_t spare = bytes >= huge_page ? huge_page : 0;
    void* const found =
        mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    auto* data = static_cast<char*>(found);
    if (spare != 0) {
        const std::size_t over = reinterpret_cast<std::uintptr_t>(data) % huge_page;
        const std::size_t before = over == 0 ? 0 : huge_page - over;
        if (before != 0) munmap(data, before);
        if (before != spare) munmap(data + before + bytes, spare - before);
        data += before;
#ifdef MADV_HUGEPAGE
        madvise(data, bytes, MADV_HUGEPAGE);  // where the system has none, nothing is lost
#endif
    }
    return {data, bytes};
}

void unmap(const Buffers::Block& block) noexcept { munmap(block.data, block.bytes); }

}  // namespace

Buffers& Buffers::instance() {
    static auto* const buffers = new Buffers;
    return *buffers;
}

Buffers::Buffers() : limit_(std::min(default_limit, physical_memory() / 8)) {}

Buffers::Block Buffers::take(std::size_t bytes) {
    const std::size_t size = rounded_up(bytes);
    {
        const std::lock_guard lock(mutex_);
        // The latest first: its pages are the likeliest to be in a cache.
        for (std::size_t i = free_.size(); i-- > 0;) {
            if (free_[i].bytes != size) continue;
            const Block block = free_[i];
            free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
            kept_ -= block.bytes;
            return block;
        }
    }
    return map(size);
}

void Buffers::give(Block block) noexcept {
    const std::lock_guard lock(mutex_);
    if (block.bytes <= limit_) {
        try {
            free_.reserve(free_.size() + 1);
            shrink_to(limit_ - block.bytes);
            free_.push_back(block);
            kept_ += block.bytes;
            return;
        } catch (const std::bad_alloc&) {  // no memory for the list: not kept
        }
    }
    unmap(block);
}

void Buffers::set_limit(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    shrink_to(bytes);
}

void Buffers::clear() {
    const std::lock_guard lock(mutex_);
    shrink_to(0);
}

std::size_t Buffers::limit() const {
    const std::lock_guard lock(mutex_);
    return limit_;
}

std::size_t Buffers::kept() const {
    const std::lock_guard lock(mutex_);
    return kept_;
}

void Buffers::shrink_to(std::size_t bytes) noexcept {
    std::size_t given_back = 0;
    for (; kept_ > bytes; ++given_back) {
        kept_ -= free_[given_back].bytes;
        unmap(free_[given_back]);
    }
    free_.erase(free_.begin(), free_.begin() + static_cast<std::ptrdiff_t>(given_back));
}

}  // namespace fastnorm::python
