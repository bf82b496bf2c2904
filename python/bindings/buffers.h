// Memory for large results, used again: the page faults of fresh memory cost more than the
// arithmetic on it. What no array uses any more is kept up to a limit, and the oldest given back.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace fastnorm::python {

class Buffers {
  public:
    // Of the process; never destroyed, since arrays may outlive the module.
    static Buffers& instance();

    // Results of fewer bytes are left to NumPy, whose allocator uses small memory again itself.
    static constexpr std::size_t least_bytes = std::size_t{1} << 20;

    struct Block {
        void* data;
        std::size_t bytes;
    };

    // Uninitialized memory of at least so many bytes, aligned to a page. Throws std::bad_alloc.
    Block take(std::size_t bytes);
    // Never fails: what cannot be kept is given back to the system.
    void give(Block block) noexcept;

    // Bytes kept at most; what is kept beyond them is given back at once.
    void set_limit(std::size_t bytes);
    void clear();
    std::size_t limit() const;
    std::size_t kept() const;

  private:
    Buffers();

    void shrink_to(std::size_t bytes) noexcept;

    mutable std::mutex mutex_;
    std::vector<Block> free_;  // oldest first
    std::size_t kept_ = 0;
    std::size_t limit_;
};

}  // namespace fastnorm::python
