/* Reads Avro's binary encoding into columns.

   A writer's schema, resolved against the columns, is a tree of ReadSteps, which codecs/avro/resolution.py makes once per
   schema. A record is the list of the steps of its fields, in the order of the payload's bytes. Each step reads one value
   into a column, or skips it:

       payload bytes --record()--> step of the field --value()--> valid[] data[] offsets[] text  --finish()--> ArrowArray

   All columns of one record are at the same row, `at`, for which the record has reserved room. So a field needs no row
   count and no check of capacity.

   The loops are fast because the end is checked once after each field. A field either fits before `end` or is at most
   VARINT_MAX bytes long, and PADDING bytes after the end can be read, whatever they contain. The last payloads of a batch
   are copied for that.

   A bad payload ends its row: functions return nullptr and set `error`. The memory for a row is bounded by its bytes: a
   length or count that exceeds the payload is refused before memory is reserved, and items that take no bytes count
   against the size of the payload.

   Nothing here needs the GIL. Functions throw only std::bad_alloc, or std::overflow_error for a column that is too large
   for Arrow (`except +`). */
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "arrow/arrow_c.h"
#include "arrow/builder.h"
#include "arrow/decimal.h"
#include "arrow/utf8.h"
#include "binary/payloads.h"
#include "binary/varint.h"

namespace sabot::avro {

constexpr int64_t PADDING = Payloads::PADDING;

enum class ReadOp : uint8_t {
    skip, skip_varint, skip_sized,  /* skips `size` bytes; a number; a length and as many bytes */
    nothing,                        /* no bytes: a null */
    boolean, int32, int64, float32, float64, /* as the writer encodes them */
    int32_as_int64, int32_as_float32, int32_as_float64, int64_as_float32, int64_as_float64, float32_as_float64,
    time32, time64,                 /* a time of day, which must be below `size` */
    bytes, text,                    /* text must be valid UTF-8 */
    fixed,                          /* `size` bytes */
    decimal,                        /* `size` bytes, or for -1 a length and as many bytes */
    uuid,                           /* 16 bytes, which become text */
    enum_,                          /* the number of a symbol in `texts` */
    record, array, union_,          /* values of `steps`; an item of an array takes at least `size` bytes */
    constant,                       /* no bytes: steps[0] reads the bytes in texts[0] */
    fail,                           /* no bytes: the row is bad, for the reason in texts[0] */
};

/* A column under construction. */
struct Column : ColumnBuilder<Column> {
    Whole limit; /* for decimals: the least positive number with too many digits */

    Column(int layout_, bool nullable_, int64_t width_) : ColumnBuilder(static_cast<Layout>(layout_), nullable_, width_) {}

    void add_child(Column* child) { children.emplace_back(child); }
    Column* child(size_t i) { return children[i].get(); }
};

/* The reading of one value of the writer's schema. */
struct ReadStep {
    ReadOp op;
    uint8_t null_branch = NO_UNION; /* for a union of null and one type: the byte that stands for null */
    uint8_t value_branch = 0;       /* the byte that stands for the other type, which this step reads */
    Column* column;                 /* the column that gets the value, or null to skip the value */
    int64_t size;
    std::vector<ReadStep> steps;
    std::vector<std::string> texts; /* symbols; `known`: true for each symbol that the columns' schema has too */
    std::vector<bool> known;
    std::string path;               /* the name for messages: "order.items[].price" */

    static constexpr uint8_t NO_UNION = 0xFF;

    ReadStep(int op_, Column* column_, int64_t size_, const std::string& path_)
        : op(static_cast<ReadOp>(op_)), column(column_), size(size_), path(path_) {}

    void of_union(int null_at) {
        null_branch = null_at == 0 ? 0 : 2; /* zigzag encoding of 0 and 1 */
        value_branch = null_at == 0 ? 2 : 0;
    }
    /* Adds a step for the caller to fill in. The pointer is valid until the next step is added. */
    ReadStep* add_step(int op_, Column* column_, int64_t size_, const std::string& path_) {
        steps.emplace_back(op_, column_, size_, path_);
        return &steps.back();
    }
    void add_text(const std::string& text, bool is_known) {
        texts.push_back(text);
        known.push_back(is_known);
    }
};

class Decoder {
  public:
    Column root{static_cast<int>(Layout::struct_), false, 0};

    /* Decodes n values of a binary array, each without its first `header` bytes. `offsets` has n + 1 entries;
       `validity` is null, or bits from `bit` on. Row i is read by programs[which[i]], or by programs[0] if `which` is
       null. OUT `out`: the good rows as a struct array; `bad`: the bad rows. May be called from any thread;
       concurrent calls wait for each other. */
    void rows(const int32_t* offsets, const uint8_t* data, const uint8_t* validity, int64_t bit, int64_t n, int64_t header,
              const ReadStep* const* programs, const int32_t* which, ArrowArray* out, std::vector<BadRow>& bad) {
        std::lock_guard<std::mutex> lock(in_use);
        root.begin(n);
        Payloads payloads(offsets, data, validity, bit, n);
        int64_t good = 0;
        for (int64_t i = 0; i < n; i++) {
            if (payloads.is_null(i)) {
                bad.push_back({i, "the payload is null"});
                continue;
            }
            const ReadStep& program = *programs[which ? which[i] : 0];
            if (SABOT_LIKELY(row(program, payloads.at(i), payloads.size(i), header, good))) {
                good++;
            } else {
                root.truncate(good);
                bad.push_back({i, error});
            }
        }
        root.truncate(good);
        hand_over(root, out);
    }

  private:
    const uint8_t* start = nullptr;
    const uint8_t* end = nullptr;
    int64_t spare = 0; /* how many more items without bytes the payload may have */
    std::string error;
    std::mutex in_use; /* serialises calls, because the columns are shared */

    bool row(const ReadStep& program, const uint8_t* p, int64_t n, int64_t header, int64_t at) {
        start = p;
        end = p + n;
        spare = n;
        if (SABOT_UNLIKELY(program.op == ReadOp::fail)) {
            error = program.texts[0];
            return false;
        }
        if (SABOT_UNLIKELY(n < header)) return fail(program, end, "the payload ends within its header") != nullptr;
        p = fields(program, p + header, at);
        if (SABOT_UNLIKELY(p == nullptr)) return false;
        if (SABOT_UNLIKELY(p != end)) return fail(program, p, "there are bytes after the end of the record") != nullptr;
        return true;
    }

    __attribute__((noinline, cold)) const uint8_t* fail(const ReadStep& step, const uint8_t* at, const std::string& reason) {
        error = step.path.empty() ? "" : "field " + step.path + ": ";
        error += reason + " at byte " + std::to_string(at - start);
        return nullptr;
    }
    /* Sets `error` for a bad value at `from`. `after`: the end of what was read, or null if a number was longer than
       64 bits. */
    __attribute__((noinline, cold)) const uint8_t* wrong(const ReadStep& step, const uint8_t* from, const uint8_t* after, const char* reason) {
        if (after == nullptr) { /* no number of 64 bits */
            after = from + VARINT_MAX;
            reason = "a number has more than 64 bits";
        }
        return after > end ? fail(step, end, "the payload ends too early") : fail(step, from, reason);
    }

    const uint8_t* fields(const ReadStep& record, const uint8_t* p, int64_t at) {
        for (const ReadStep& step : record.steps) {
            p = value(step, p, at);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
            if (SABOT_UNLIKELY(p > end)) return fail(step, end, "the payload ends too early");
        }
        return p;
    }

    template <class T>
    static inline void put(const ReadStep& step, int64_t at, T number) {
        Column& column = *step.column;
        column.valid[at] = 1;
        std::memcpy(column.data + at * static_cast<int64_t>(sizeof(T)), &number, sizeof(T));
    }
    template <class T>
    static inline T load(const uint8_t* p) {
        T number = 0;
        std::memcpy(&number, p, sizeof(T));
        return number;
    }

    /* Reads a zigzag number that fits into 32 bits. */
    __attribute__((always_inline)) inline const uint8_t* small(const ReadStep& step, const uint8_t* p, int32_t& number) {
        uint64_t raw = 0;
        const uint8_t* const after = read_varint(p, raw);
        if (SABOT_UNLIKELY(after == nullptr || raw > UINT32_MAX)) return wrong(step, p, after, "the number is out of range for an int");
        number = static_cast<int32_t>(zigzag_decode(raw));
        return after;
    }
    __attribute__((always_inline)) inline const uint8_t* large(const ReadStep& step, const uint8_t* p, int64_t& number) {
        uint64_t raw = 0;
        const uint8_t* const after = read_varint(p, raw);
        if (SABOT_UNLIKELY(after == nullptr)) return wrong(step, p, after, "");
        number = zigzag_decode(raw);
        return after;
    }
    /* Reads a length and checks that as many bytes follow. */
    __attribute__((always_inline)) inline const uint8_t* length(const ReadStep& step, const uint8_t* p, int64_t& n) {
        const uint8_t* const after = large(step, p, n);
        if (SABOT_UNLIKELY(after == nullptr)) return nullptr;
        if (SABOT_UNLIKELY(n < 0 || n > end - after)) {
            if (n < 0 && after <= end) return fail(step, p, "a length is negative");
            return fail(step, end, "the payload ends too early");
        }
        return after;
    }

    __attribute__((noinline)) const uint8_t* value_apart(const ReadStep& step, const uint8_t* p, int64_t at) { return value(step, p, at); }

    /* Reads the value at p, which is not beyond the end. Returns the address after the value, which may be beyond the
       end, or nullptr for a bad value. */
    __attribute__((always_inline)) inline const uint8_t* value(const ReadStep& step, const uint8_t* p, int64_t at) {
        if (step.null_branch != ReadStep::NO_UNION) {
            const uint8_t branch = *p;
            if (branch == step.null_branch) {
                if (step.column) step.column->put_null(at);
                return p + 1;
            }
            if (SABOT_UNLIKELY(branch != step.value_branch)) return wrong(step, p, p + 1, "the union has no such branch");
            p++;
            if (SABOT_UNLIKELY(p > end)) return p;
        }
        switch (step.op) {
            case ReadOp::skip:
                if (SABOT_UNLIKELY(step.size > end - p)) return fail(step, end, "the payload ends too early");
                return p + step.size;
            case ReadOp::skip_varint: {
                uint64_t raw = 0;
                const uint8_t* const after = read_varint(p, raw);
                return SABOT_LIKELY(after != nullptr) ? after : wrong(step, p, after, "");
            }
            case ReadOp::skip_sized: {
                int64_t n = 0;
                p = length(step, p, n);
                return SABOT_LIKELY(p != nullptr) ? p + n : nullptr;
            }
            case ReadOp::nothing:
                step.column->put_null(at);
                return p;
            case ReadOp::boolean:
                if (SABOT_UNLIKELY(*p > 1)) return wrong(step, p, p + 1, "a boolean is neither 0 nor 1");
                put(step, at, *p);
                return p + 1;
            case ReadOp::int32: return number<int32_t, int32_t>(step, p, at);
            case ReadOp::int64: return number<int64_t, int64_t>(step, p, at);
            case ReadOp::int32_as_int64: return number<int32_t, int64_t>(step, p, at);
            case ReadOp::int32_as_float32: return number<int32_t, float>(step, p, at);
            case ReadOp::int32_as_float64: return number<int32_t, double>(step, p, at);
            case ReadOp::int64_as_float32: return number<int64_t, float>(step, p, at);
            case ReadOp::int64_as_float64: return number<int64_t, double>(step, p, at);
            case ReadOp::float32:
                put(step, at, load<float>(p));
                return p + 4;
            case ReadOp::float64:
                put(step, at, load<double>(p));
                return p + 8;
            case ReadOp::float32_as_float64:
                put(step, at, static_cast<double>(load<float>(p)));
                return p + 4;
            case ReadOp::time32: return time_of_day<int32_t>(step, p, at);
            case ReadOp::time64: return time_of_day<int64_t>(step, p, at);
            case ReadOp::bytes: return text<false>(step, p, at);
            case ReadOp::text: return text<true>(step, p, at);
            case ReadOp::fixed:
                if (SABOT_UNLIKELY(step.size > end - p)) return fail(step, end, "the payload ends too early");
                step.column->valid[at] = 1;
                if (step.size) std::memcpy(step.column->data + at * step.size, p, static_cast<size_t>(step.size));
                return p + step.size;
            case ReadOp::decimal: return decimal(step, p, at);
            case ReadOp::uuid: return uuid(step, p, at);
            case ReadOp::enum_: return symbol(step, p, at);
            case ReadOp::record:
                if (step.column) step.column->valid[at] = 1;
                return fields(step, p, at);
            case ReadOp::array: return array(step, p, at);
            case ReadOp::union_: {
                uint64_t branch = 0;
                const uint8_t* const after = read_varint(p, branch);
                if (SABOT_UNLIKELY(after == nullptr || (branch & 1) || (branch >> 1) >= step.steps.size()))
                    return wrong(step, p, after, "the union has no such branch");
                if (SABOT_UNLIKELY(after > end)) return after;
                return value_apart(step.steps[branch >> 1], after, at);
            }
            case ReadOp::constant: return constant(step, p, at);
            case ReadOp::fail: return fail(step, p, step.texts[0]);
        }
        __builtin_unreachable();
    }

    template <class Wire, class T>
    __attribute__((always_inline)) inline const uint8_t* number(const ReadStep& step, const uint8_t* p, int64_t at) {
        Wire number = 0;
        if constexpr (sizeof(Wire) == 4)
            p = small(step, p, number);
        else
            p = large(step, p, number);
        if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
        put(step, at, static_cast<T>(number));
        return p;
    }

    template <class T>
    const uint8_t* time_of_day(const ReadStep& step, const uint8_t* p, int64_t at) {
        T number = 0;
        const uint8_t* after;
        if constexpr (sizeof(T) == 4)
            after = small(step, p, number);
        else
            after = large(step, p, number);
        if (SABOT_UNLIKELY(after == nullptr)) return nullptr;
        if (SABOT_UNLIKELY(number < 0 || number >= step.size)) return wrong(step, p, after, "the time is not within a day");
        put(step, at, number);
        return after;
    }

    template <bool checked>
    __attribute__((always_inline)) inline const uint8_t* text(const ReadStep& step, const uint8_t* p, int64_t at) {
        int64_t n = 0;
        p = length(step, p, n);
        if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
        Column& column = *step.column;
        Bytes& out = column.text;
        out.ensure(n);
        uint8_t* const to = out.data + out.len;
        bool good = true;
#if defined(__SSE2__)
        if (SABOT_LIKELY(n <= 16)) {
            const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), block);
            if (checked && SABOT_UNLIKELY(static_cast<unsigned>(_mm_movemask_epi8(block)) & ((1u << n) - 1))) good = is_utf8(p, n);
        } else
#endif
        {
            std::memcpy(to, p, static_cast<size_t>(n));
            if (checked) good = is_utf8(p, n);
        }
        if (SABOT_UNLIKELY(!good)) return fail(step, p, "invalid UTF-8");
        out.len += n;
        column.valid[at] = 1;
        column.offsets[at + 1] = static_cast<int32_t>(out.len);
        return p + n;
    }

    inline void put_text(const ReadStep& step, int64_t at, const void* from, int64_t n) {
        Column& column = *step.column;
        column.text.put(from, n);
        column.valid[at] = 1;
        column.offsets[at + 1] = static_cast<int32_t>(column.text.len);
    }

    const uint8_t* symbol(const ReadStep& step, const uint8_t* p, int64_t at) {
        int64_t number = 0;
        const uint8_t* const after = large(step, p, number);
        if (SABOT_UNLIKELY(after == nullptr)) return nullptr;
        if (SABOT_UNLIKELY(number < 0 || number >= static_cast<int64_t>(step.texts.size()) || after > end))
            return wrong(step, p, after, "the enum has no such symbol");
        const std::string& name = step.texts[static_cast<size_t>(number)];
        if (SABOT_UNLIKELY(!step.known[static_cast<size_t>(number)]))
            return fail(step, p, "the reader's schema has no symbol " + name);
        put_text(step, at, name.data(), static_cast<int64_t>(name.size()));
        return after;
    }

    const uint8_t* uuid(const ReadStep& step, const uint8_t* p, int64_t at) {
        static const char hex[] = "0123456789abcdef";
        if (SABOT_UNLIKELY(end - p < 16)) return fail(step, end, "the payload ends too early");
        char shown[36], *to = shown;
        for (int i = 0; i < 16; i++) {
            if (i == 4 || i == 6 || i == 8 || i == 10) *to++ = '-';
            *to++ = hex[p[i] >> 4];
            *to++ = hex[p[i] & 15];
        }
        put_text(step, at, shown, 36);
        return p + 16;
    }

    /* Reads a whole number of any length: two's complement, highest byte first. */
    const uint8_t* decimal(const ReadStep& step, const uint8_t* p, int64_t at) {
        int64_t n = step.size;
        if (n < 0) {
            p = length(step, p, n);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
            if (SABOT_UNLIKELY(n == 0)) return fail(step, p, "a decimal has no bytes");
        } else if (SABOT_UNLIKELY(n > end - p)) {
            return fail(step, end, "the payload ends too early");
        }
        const uint8_t sign = *p & 0x80 ? 0xFF : 0;
        const uint8_t* first = p; /* at most 32 bytes that hold the number; the bytes before them only repeat the sign */
        const uint8_t* const last = p + n;
        while (last - first > 32 && *first == sign) first++;
        uint8_t low[32];
        std::memset(low, sign, sizeof low);
        Whole number;
        bool fits = last - first <= 32;
        if (SABOT_LIKELY(fits)) {
            for (int64_t i = 0; i < last - first; i++) low[i] = last[-1 - i];
            std::memcpy(number.words, low, sizeof low);
            fits = number.is_negative() == (sign != 0) && number.is_below(step.column->limit);
        }
        if (SABOT_UNLIKELY(!fits)) return fail(step, p, "the decimal has more digits than its type");
        step.column->valid[at] = 1;
        std::memcpy(step.column->data + at * step.column->width, low, static_cast<size_t>(step.column->width));
        return last;
    }

    /* Reads the blocks of an array. Each block is a count and as many items. A negative count is followed by the size
       of the block in bytes. */
    __attribute__((noinline)) const uint8_t* array(const ReadStep& step, const uint8_t* p, int64_t at) {
        const ReadStep& item = step.steps[0];
        Column* const items = step.column ? step.column->child(0) : nullptr;
        for (;;) {
            const uint8_t* const from = p;
            const uint8_t* stop = nullptr;
            int64_t count = 0, size = 0;
            p = large(step, p, count);
            if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
            if (SABOT_UNLIKELY(p > end)) return p;
            if (count == 0) break;
            if (count < 0) {
                p = length(step, p, size);
                if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
                stop = p + size;
                count = count == INT64_MIN ? INT64_MAX : -count;
            }
            if (step.size == 0 ? count > spare : count > (end - p) / step.size)
                return fail(step, from, "a block has more items than fit into the payload");
            if (step.size == 0) spare -= count;
            if (items == nullptr && stop) {
                p = stop;
                continue;
            }
            for (; count > 0; count--) {
                if (items && SABOT_UNLIKELY(items->len == items->cap)) items->reserve(items->doubled());
                p = value_apart(item, p, items ? items->len : 0);
                if (SABOT_UNLIKELY(p == nullptr)) return nullptr;
                if (SABOT_UNLIKELY(p > end)) return p;
                if (items) items->len++;
            }
            if (SABOT_UNLIKELY(stop && p != stop)) return fail(step, from, "the length of a block is not the length that it states");
        }
        if (items) {
            step.column->valid[at] = 1;
            step.column->offsets[at + 1] = static_cast<int32_t>(items->len);
        }
        return p;
    }

    const uint8_t* constant(const ReadStep& step, const uint8_t* p, int64_t at) {
        const std::string& bytes = step.texts[0]; /* followed by PADDING bytes, which the Cython side adds */
        const uint8_t* const from = reinterpret_cast<const uint8_t*>(bytes.data());
        const uint8_t* const end_before = end;
        const int64_t spare_before = spare;
        end = from + static_cast<int64_t>(bytes.size()) - PADDING;
        spare = INT64_MAX;
        const uint8_t* const after = value_apart(step.steps[0], from, at);
        end = end_before;
        spare = spare_before;
        return after == nullptr ? nullptr : p;
    }
};

}  // namespace sabot::avro
