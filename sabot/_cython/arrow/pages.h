/* What is asked of the system about pages of memory. All of it is advice: where the system does not take it, nothing but time is lost. */
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

/* Memory for random access: in huge pages where it is large enough and the system provides them. To be freed by std::free. */
static inline void* allocate(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, bytes >= HUGE_PAGE ? HUGE_PAGE : 64, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= HUGE_PAGE) madvise(memory, bytes & ~(HUGE_PAGE - 1), MADV_HUGEPAGE);
#endif
    return memory;
}

/* Has the system provide the pages of `n` bytes, which are about to be written for the first time. In one call they cost half of what
they cost by faults, one by one. Best in steps that the processor's cache holds, as the pages are filled with zeros. Linux 5.14 and later. */
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
