/* Memory that the system may page out: it is written to a file, and the file is mapped. The file has no name and
   disappears with the process.

   Nothing here needs the GIL. Functions throw std::ios_base::failure (an OSError in Python) if the file cannot be
   made or mapped. */
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ios>
#include <string>
#include <vector>

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rows/row_column.h"

namespace sabot {

class Mapped {
  public:
    struct Part {
        const uint8_t* from;
        size_t bytes;
    };

    Mapped(const std::string& directory, const std::vector<Part>& parts) {
        for (const Part& part : parts) bytes_ += padded(part.bytes);
        std::string name = directory + "/rows.XXXXXX";
        const int file = mkstemp(name.data());
        if (file < 0) fail(directory, "cannot be written to");
        unlink(name.c_str());
        size_t at = 0;
        bool good = ftruncate(file, static_cast<off_t>(bytes_)) == 0;
        for (const Part& part : parts) {
            good = good && write_at(file, part, at);
            at += padded(part.bytes);
        }
        void* memory = good ? mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
        const int error = errno;
        close(file);
        errno = error;
        if (memory == MAP_FAILED) fail(directory, "cannot store a file of rows");
        at_ = static_cast<uint8_t*>(memory);
    }
    Mapped(const Mapped&) = delete;
    Mapped& operator=(const Mapped&) = delete;
    ~Mapped() {
        if (at_) munmap(at_, bytes_);
    }

    /* Lends the next `bytes` bytes of the mapped file to a Memory, in the sequence in which they were written. */
    void lend_next(Memory& memory, size_t bytes) {
        if (bytes) memory.lend(at_ + next_, bytes);
        next_ += padded(bytes);
    }

  private:
    uint8_t* at_ = nullptr;
    size_t bytes_ = 0, next_ = 0;

    static size_t padded(size_t bytes) { return (bytes + 63) & ~size_t(63); }
    [[noreturn]] static void fail(const std::string& directory, const char* what) {
        throw std::ios_base::failure("state directory " + directory + " " + what + ": " + std::strerror(errno));
    }
    static bool write_at(int file, const Part& part, size_t at) {
        for (size_t done = 0; done < part.bytes;) {
            const ssize_t written = pwrite(file, part.from + done, part.bytes - done, static_cast<off_t>(at + done));
            if (written < 0 && errno != EINTR) return false;
            if (written > 0) done += static_cast<size_t>(written);
        }
        return true;
    }
};

/* Calls body(memory, bytes in use) for each memory of a store. */
template <class StoreType, class Body>
static inline void each_memory(StoreType& store, const Layout& layout, int64_t rows, const Store& like, Body body) {
    using Shape = Layout::Shape;
    if (like.nullable) body(store.validity, static_cast<size_t>(rows + 7) / 8);
    if (layout.shape == Shape::bits) body(store.values, static_cast<size_t>(rows + 7) / 8);
    if (layout.shape == Shape::fixed) body(store.values, static_cast<size_t>(rows * layout.width));
    if (layout.shape == Shape::bytes || layout.shape == Shape::list) body(store.values, static_cast<size_t>(4 * (rows + 1)));
    if (layout.shape == Shape::bytes) body(store.data, static_cast<size_t>(like.values.as<uint32_t>()[rows]));
    for (size_t c = 0; c < like.children.size(); c++)
        each_memory(store.children[c], layout.children[c], like.children[c].rows, like.children[c], body);
}

}  // namespace sabot
