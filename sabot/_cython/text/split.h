/* Finds one part of each text between separators, without a list of all parts, the elements of a JSON array, and codes among the
   fields of CSV. All functions are `nogil`, and `noexcept` but for the vectors of ArrayScan. */
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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

/* A search for codes in CSV: fields that look like whole numbers as no program writes them, such as 01234, +4930123 and 0x1F. */
struct CodeScan {
    const uint8_t* data;
    int64_t n;
    uint8_t delimiter;
    const uint8_t* wanted; /* 1 for each of `fields` fields of a record that is looked at */
    int64_t fields;

    static bool is_digit(uint8_t c) { return static_cast<uint8_t>(c - '0') < 10; }
    static bool is_blank(uint8_t c) { return c == ' ' || c == '\t'; }
    bool ends(int64_t at) const { return at < 0 || at >= n || data[at] == delimiter || data[at] == '\n' || data[at] == '\r'; }

    /* Returns true if a code may be in a wanted field: where quotes leave it open which field it is in, it counts as one. */
    bool any() const {
        int64_t at = 0;
        if (n > 0 && is_code(at++)) return true;
#if defined(__SSE2__)
        /* Blanks, quotes, line breaks, and all delimiters but those that are letters or signs of their own, are at most ','. */
        const __m128i most = _mm_set1_epi8(','), separator = _mm_set1_epi8(static_cast<char>(delimiter));
        const __m128i zero = _mm_set1_epi8('0'), plus = _mm_set1_epi8('+'), minus = _mm_set1_epi8('-');
        for (; at + 16 <= n; at += 16) {
            const __m128i before = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + at - 1));
            const __m128i here = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + at));
            const __m128i begins = _mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(before, most), before), _mm_cmpeq_epi8(before, separator));
            const __m128i starts =
                _mm_or_si128(_mm_cmpeq_epi8(here, zero), _mm_or_si128(_mm_cmpeq_epi8(here, plus), _mm_cmpeq_epi8(here, minus)));
            unsigned found = static_cast<unsigned>(_mm_movemask_epi8(_mm_and_si128(begins, starts)));
            for (; found; found &= found - 1)
                if (is_code(at + __builtin_ctz(found))) return true;
        }
#endif
        for (; at < n; at++)
            if (is_code(at)) return true;
        return false;
    }

    /* Returns true if a code in a wanted field may have its sign, or without one its first 0, here. */
    bool is_code(int64_t at) const {
        int64_t begin = at - 1, end = at + 1;
        if (data[at] == '-' || data[at] == '+') {
            if (end == n || (data[at] == '-' && data[end] != '0')) return false;
            end += data[end] == '0';
        } else if (data[at] != '0') {
            return false;
        }
        while (begin >= 0 && data[begin] != delimiter && is_blank(data[begin])) begin--;
        if (begin >= 0 && data[begin] == '"') begin--;
        if (!ends(begin)) return false;
        const bool is_hex = data[end - 1] == '0' && end < n && (data[end] | 0x20) == 'x';
        end += is_hex;
        const int64_t first = end;
        while (end < n && (is_digit(data[end]) || (is_hex && (data[end] | 0x20) >= 'a' && (data[end] | 0x20) <= 'f'))) end++;
        if (end == first && data[at] != '+') return false;
        while (end < n && data[end] != delimiter && is_blank(data[end])) end++;
        if (end < n && data[end] == '"') end++;
        return ends(end) && may_be_wanted(begin + 1);
    }

    /* Returns true if the field that begins here may be a wanted one. */
    bool may_be_wanted(int64_t field) const {
        int64_t at = field, number = 0;
        while (at > 0 && data[at - 1] != '\n' && data[at - 1] != '\r') at--;
        while (at < field) {
            if (data[at] == '"') {
                for (at++; at < field && (data[at] != '"' || data[at + 1] == '"'); at++) at += data[at] == '"';
                at++;
                if (at >= field || data[at] != delimiter) return true; /* the line begins, or the field lies, in a quoted field */
            }
            for (; data[at] != delimiter; at++)
                if (data[at] == '"') return true;
            at++;
            number++;
        }
        return number >= fields || wanted[number];
    }
};

}  // namespace sabot
