/* Requests to the operating system about pages of memory. They are hints: if the system ignores one, the program is
   only slower. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sabot {

constexpr size_t PAGE = 4096;
constexpr size_t HUGE_PAGE = size_t(1) << 21;

/* Allocates memory for random access. Large blocks are in huge pages if the system provides them. Free it with
   std::free. Throws bad_alloc. */
static inline void* allocate(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, bytes >= HUGE_PAGE ? HUGE_PAGE : 64, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= HUGE_PAGE) madvise(memory, bytes & ~(HUGE_PAGE - 1), MADV_HUGEPAGE);
#endif
    return memory;
}

/* Maps the pages of `n` bytes that are about to be written for the first time. One call costs half as much as one
   page fault for each page. Call it for pieces that fit into the processor's cache, because the system fills the
   pages with zeros. Needs Linux 5.14; does nothing elsewhere. */
static inline void provide(void* at, size_t n) {
#if defined(__linux__)
#if !defined(MADV_POPULATE_WRITE)
    constexpr int MADV_POPULATE_WRITE = 23;
#endif
    const uintptr_t from = reinterpret_cast<uintptr_t>(at) & ~(PAGE - 1), to = reinterpret_cast<uintptr_t>(at) + n;
    if (from + PAGE <= to) madvise(reinterpret_cast<void*>(from), (to - from) & ~(PAGE - 1), MADV_POPULATE_WRITE);
#else
    (void)at, (void)n;
#endif
}

}  // namespace sabot
