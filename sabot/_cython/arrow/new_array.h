/* Makes Arrow arrays whose buffers come from malloc, for export through the C Data Interface. The consumer may
   release them in any thread, without the GIL. */
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "arrow/arrow_c.h"

namespace sabot {

static inline void release_array(ArrowArray* array) {
    for (int64_t i = 0; i < array->n_buffers; i++) std::free(const_cast<void*>(array->buffers[i]));
    for (int64_t i = 0; i < array->n_children; i++) {
        ArrowArray* child = array->children[i];
        if (child->release) child->release(child); /* null if the consumer has moved the child */
        std::free(child);
    }
    std::free(array->buffers);
    std::free(array->children);
    array->release = nullptr;
}

/* Makes an array whose buffers are null, with `children` released children. Throws bad_alloc; then `out` is either
   released or can be released. */
static inline void make_array(ArrowArray* out, int64_t length, int buffers, size_t children) {
    std::memset(out, 0, sizeof *out);
    out->length = length;
    out->buffers = static_cast<const void**>(std::calloc(static_cast<size_t>(buffers) + 1, sizeof(void*)));
    if (out->buffers == nullptr) throw std::bad_alloc();
    out->release = release_array;
    out->n_buffers = buffers;
    if (children == 0) return;
    out->children = static_cast<ArrowArray**>(std::calloc(children, sizeof(ArrowArray*)));
    if (out->children == nullptr) throw std::bad_alloc();
    for (size_t i = 0; i < children; i++) {
        out->children[i] = static_cast<ArrowArray*>(std::calloc(1, sizeof(ArrowArray)));
        if (out->children[i] == nullptr) throw std::bad_alloc();
        out->n_children++;
    }
}

}  // namespace sabot
