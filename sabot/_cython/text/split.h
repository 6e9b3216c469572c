/* Finds one part of each text between separators, without a list of all parts, and the elements of a JSON array. All
   functions are `nogil`, and `noexcept` but for the vectors of ArrayScan. */
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace sabot {

struct Separator {
    const uint8_t* bytes;
    int64_t size; /* at least 1 */

    /* Returns the address of its first occurrence in [at, end), or `end`. */
    const uint8_t* find(const uint8_t* at, const uint8_t* end) const {
        while (end - at >= size) {
            at = static_cast<const uint8_t*>(std::memchr(at, bytes[0], static_cast<size_t>(end - at - size + 1)));
            if (at == nullptr) return end;
            if (size == 1 || std::memcmp(at, bytes, static_cast<size_t>(size)) == 0) return at;
            at++;
        }
        return end;
    }
};

/* Finds part `index` of the text in [at, end), counted from the end if negative. Returns false if the text has fewer
   parts. */
static inline bool find_part(
    const uint8_t* at, const uint8_t* end, Separator by, int64_t index, const uint8_t** first, const uint8_t** last
) {
    if (index < 0) {
        int64_t parts = 1;
        for (const uint8_t* place = by.find(at, end); place != end; place = by.find(place + by.size, end)) parts++;
        index += parts;
        if (index < 0) return false;
    }
    for (;; index--) {
        const uint8_t* place = by.find(at, end);
        if (index == 0) {
            *first = at;
            *last = place;
            return true;
        }
        if (place == end) return false;
        at = place + by.size;
    }
}

/* Finds the part of each text. OUT starts: its offset in `data`; ends: the end of its copy in the result; a bit that
   is 1 if the part exists. A text that is null or has fewer parts gets an empty part and the bit 0. `offsets`: from
   the first text on. `validity`: as in a View. */
static inline void find_parts(
    const int32_t* offsets, const uint8_t* data, const uint8_t* validity, int64_t start, int64_t count, Separator by, int64_t index,
    int32_t* starts, int32_t* ends, uint8_t* there
) {
    int32_t written = 0;
    for (int64_t row = 0; row < count; row++) {
        const int64_t bit = start + row;
        const uint8_t *first = data, *last = data;
        if ((validity == nullptr || ((validity[bit >> 3] >> (bit & 7)) & 1)) &&
            find_part(data + offsets[row], data + offsets[row + 1], by, index, &first, &last)) {
            there[row >> 3] = static_cast<uint8_t>(there[row >> 3] | (1 << (row & 7)));
        }
        starts[row] = static_cast<int32_t>(first - data);
        written += static_cast<int32_t>(last - first);
        ends[row] = written;
    }
}

/* Copies the parts that `find_parts` found. */
static inline void copy_parts(const uint8_t* data, const int32_t* starts, const int32_t* ends, int64_t count, uint8_t* out) {
    int32_t begin = 0;
    for (int64_t row = 0; row < count; row++) {
        std::memcpy(out + begin, data + starts[row], static_cast<size_t>(ends[row] - begin));
        begin = ends[row];
    }
}

/* The elements of a JSON array in text that begins in the array and outside of an element.

   `starts`, `sizes`: of each element without the blanks around it; a blank element has the size 0. `end`: behind the last
   comma between elements, or behind the closing bracket; 0 if there is neither. `close`: behind the closing bracket, or 0. */
struct ArrayScan {
    std::vector<int64_t> starts, sizes;
    int64_t end = 0, close = 0;

    /* Scans up to `most` elements. Quotes tell which bytes are in texts, and brackets outside of texts tell the depth. Text
       behind the last comma is an element too, unless it is blank: only in a file that is cut off is there such a text. */
    void scan(const uint8_t* data, int64_t n, int64_t most, bool keep) {
        int64_t depth = 0, begin = 0, found = 0;
        for (int64_t i = 0; i < n; i++) {
            switch (data[i]) {
                case '"':
                    for (i++; i < n && data[i] != '"'; i++) {
                        if (data[i] == '\\') i++;
                    }
                    break;
                case '{':
                case '[':
                    depth++;
                    break;
                case '}':
                    if (depth) depth--;
                    break;
                case ']':
                    if (depth) {
                        depth--;
                        break;
                    }
                    if (keep) add(data, begin, i, false);
                    end = close = i + 1;
                    return;
                case ',':
                    if (depth) break;
                    if (keep) add(data, begin, i, true);
                    end = begin = i + 1;
                    if (++found == most) return;
                    break;
                default:
                    break;
            }
        }
        if (keep) add(data, begin, n, false);
    }

    /* Copies the elements one behind the other. OUT offsets: the end of each in `out`. */
    void copy(const uint8_t* data, int32_t* offsets, uint8_t* out) const {
        int64_t written = 0;
        for (size_t i = 0; i < starts.size(); i++) {
            std::memcpy(out + written, data + starts[i], static_cast<size_t>(sizes[i]));
            written += sizes[i];
            offsets[i] = static_cast<int32_t>(written);
        }
    }

   private:
    static bool blank(uint8_t c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

    void add(const uint8_t* data, int64_t low, int64_t high, bool even_blank) {
        while (low < high && blank(data[low])) low++;
        while (low < high && blank(data[high - 1])) high--;
        if (low == high && !even_blank) return;
        starts.push_back(low);
        sizes.push_back(high - low);
    }
};

}  // namespace sabot
