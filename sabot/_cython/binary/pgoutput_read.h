/* Reads what PostgreSQL sends of one table into columns: the messages of pgoutput, its plugin for logical decoding, in protocol 1 with
   binary values, and the rows of COPY (FORMAT binary).

       message --change()--> tuple() --> spans, one for each column --row()--> put() --> valid[] data[] offsets[] text  --> ArrowArray

   A tuple is divided into spans first, because an update takes from its old row what it does not have itself, and its keys are compared.
   All columns are at the same row, `at_`, as in avro_read.h.

   A value that Arrow does not have makes its row bad: put() returns false and sets `why_`, and the row is taken back. Bytes that
   no server sends throw Broken, which becomes std::invalid_argument with the number of the message; the decoder is then as it was
   before the call. Beside these, functions throw std::bad_alloc, and std::overflow_error for a column that is too large for Arrow.

   Layouts: PostgreSQL 18, chapter 54.9 (Logical Replication Message Formats) and COPY, "Binary Format". Nothing here needs the GIL. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrow/arrow_c.h"
#include "arrow/builder.h"
#include "arrow/decimal.h"
#include "arrow/utf8.h"
#include "binary/pgoutput_text.h"

namespace sabot::pg {

constexpr int64_t HEADER = 25;        /* of XLogData: 'w', the start and the end of the WAL, and the server's time */
constexpr int64_t US_TO_1970 = US_TO_2000;
constexpr int DIGITS = 76;            /* the most digits of a decimal */

enum Op : int8_t { INSERT = 0, UPDATE_AFTER = 2, DELETE = 3 };

struct Column : ColumnBuilder<Column> {
    Shape shape;
    std::unique_ptr<Shape> inner; /* what `shape.inner` points to */
    std::string name;
    int scale = 0; /* for decimals, with the least positive number that has too many digits */
    Whole limit;
    bool is_key = false;

    Column(int layout_, bool nullable_, int64_t width_) : ColumnBuilder(static_cast<Layout>(layout_), nullable_, width_) {}

    void of_kind(int kind, int inner_kind) {
        if (inner_kind >= 0) inner = std::make_unique<Shape>(Shape{static_cast<Kind>(inner_kind), nullptr});
        shape = {static_cast<Kind>(kind), inner.get()};
    }
    void nest() { /* the inner kind becomes that of the values of a list's ranges */
        lowest = std::move(inner);
        inner = std::make_unique<Shape>(Shape{Kind::range, lowest.get()});
        shape.inner = inner.get();
    }
    void add_child(Column* child) { children.emplace_back(child); }

  private:
    std::unique_ptr<Shape> lowest;
};

struct Message {
    const uint8_t* p;
    int64_t n;
};

/* A column of a tuple: its state and bytes. */
struct Span {
    enum class State : uint8_t { null, unchanged, value } state;
    const uint8_t* p;
    int64_t n;
};

struct BadChange {
    int64_t row, message;
    int column;
    std::string reason;
    std::vector<std::pair<int, std::string>> texts; /* the values that are not null, by column */
};

struct Transaction {
    int64_t first;
    uint64_t lsn;
    int64_t time;
    uint32_t xid;
};

struct RelationColumn {
    std::string name;
    uint32_t type;
    int32_t typmod;
    bool is_key;
};

struct Run {
    enum Stop : int { NOTHING, RELATION, TRUNCATE };

    std::vector<BadChange> bad;
    std::vector<Transaction> transactions;
    int64_t next = 0;
    uint64_t position = 0;
    int64_t taken = 0;
    int stop = NOTHING;
    uint32_t relation = 0; /* of a RELATION */
    std::string schema, table;
    char identity = 0;
    std::vector<RelationColumn> columns;
    std::vector<uint32_t> truncated; /* of a TRUNCATE: relations and options */
    int options = 0;
};

class Decoder {
  public:
    Column root{static_cast<int>(Layout::struct_), false, 0}; /* the columns, and behind them the op */

    /* Columns of ours that are not among the places have nulls in the rows of this relation. */
    void use(uint32_t relation, const std::vector<int>& places) {
        std::vector<int> missing;
        for (int place = 0; place < static_cast<int>(root.children.size()) - 1; place++)
            if (std::find(places.begin(), places.end(), place) == places.end()) missing.push_back(place);
        put_relation({relation, false, places, missing});
    }
    void ignore(uint32_t relation) { put_relation({relation, true, {}, {}}); }

    void begin(uint64_t after, int64_t skip) {
        state_ = State();
        state_.after = after;
        state_.skip = skip;
        relations_.clear();
    }

    /* Decodes messages[first:] until their end, `max_rows` rows, or a message for the caller to decide on. OUT `out`: a struct array. */
    void changes(const Message* messages, int64_t count, int64_t first, int64_t max_rows, ArrowArray* out, Run& run) {
        const State before = state_;
        root.begin(std::min(max_rows, count - first));
        at_ = given_ = 0;
        most_ = max_rows;
        int64_t i = first;
        try {
            for (; i < count && run.stop == Run::NOTHING; i++)
                if (!message(messages[i], i, run)) break;
        } catch (const Broken& broken) {
            state_ = before;
            throw std::invalid_argument(told(broken, messages[i], i));
        } catch (...) {
            state_ = before;
            throw;
        }
        run.next = i;
        run.taken = state_.open ? std::max(state_.number, state_.skip) : state_.skip;
        root.truncate(at_);
        hand_over(root, out);
    }

    /* Decodes the rows of a COPY; those of one message are whole. */
    void copied(const Message* chunks, int64_t count, ArrowArray* out, Run& run) {
        root.begin(count);
        at_ = given_ = 0;
        for (int64_t i = 0; i < count; i++) {
            try {
                chunk(chunks[i], i, run);
            } catch (const Broken& broken) {
                throw std::invalid_argument("message " + std::to_string(i) + " of COPY, byte " + std::to_string(broken.at - chunks[i].p) + ": " + broken.reason);
            }
        }
        root.truncate(at_);
        hand_over(root, out);
    }

  private:
    struct Relation {
        uint32_t id;
        bool ignored;
        std::vector<int> places;  /* for each column of the table that of ours, or -1 */
        std::vector<int> missing; /* the columns of ours that the table does not have */
    };
    struct State {
        bool open = false, covered = false;
        uint64_t lsn = 0; /* of the commit record of the open transaction */
        int64_t time = 0;
        uint32_t xid = 0;
        int64_t number = 0; /* rows of the open transaction that were given or skipped */
        bool half = false;  /* whether the first of the two rows of the next message is among them */
        uint64_t after = 0;
        int64_t skip = 0;
    };
    using Spans = std::vector<Span>;

    State state_;
    std::vector<Relation> relations_;
    Spans new_, old_;
    bool is_whole_ = false; /* whether `old_` is a whole row (O), and not only its key (K) */
    int64_t at_ = 0, given_ = 0, most_ = 0; /* good rows; good and bad rows; the most of these */
    std::string why_;

    void put_relation(Relation relation) {
        for (Relation& each : relations_)
            if (each.id == relation.id) {
                each = std::move(relation);
                return;
            }
        relations_.push_back(std::move(relation));
    }

    const Relation& relation_of(uint32_t id, const uint8_t* at) const {
        for (const Relation& each : relations_)
            if (each.id == id) return each;
        throw Broken{at, "no Relation message came before for relation " + std::to_string(id)};
    }

    static std::string told(const Broken& broken, const Message& message, int64_t number) {
        const char* kind = "?";
        switch (message.n > HEADER ? message.p[HEADER] : 0) {
            case 'B': kind = "Begin"; break;
            case 'C': kind = "Commit"; break;
            case 'R': kind = "Relation"; break;
            case 'Y': kind = "Type"; break;
            case 'O': kind = "Origin"; break;
            case 'I': kind = "Insert"; break;
            case 'U': kind = "Update"; break;
            case 'D': kind = "Delete"; break;
            case 'T': kind = "Truncate"; break;
            case 'M': kind = "Message"; break;
            default: break;
        }
        return "message " + std::to_string(number) + " (" + kind + "), byte " + std::to_string(broken.at - message.p) + ": " + broken.reason;
    }

    /* Reads a message. Returns false if the rows of this run are full before it or within it. */
    bool message(const Message& given, int64_t i, Run& run) {
        Cursor in{given.p, given.p + given.n};
        if (*in.take(HEADER, "the header of XLogData") != 'w') throw Broken{given.p, "it is no XLogData"};
        const uint8_t kind = in.number<uint8_t>("its kind");
        if (SABOT_UNLIKELY(!state_.open && (kind == 'I' || kind == 'U' || kind == 'D' || kind == 'T' || kind == 'C')))
            throw Broken{in.p - 1, "it is outside of a transaction"};
        switch (kind) {
            case 'I':
            case 'U':
            case 'D': return change(kind, in, i, run);
            case 'B': begun(in); break;
            case 'C': committed(in, run); break;
            case 'R': described(in, run); break;
            case 'T': truncated(in, run); break;
            case 'Y':
                in.take(4, "the type");
                in.name("the schema of the type");
                in.name("the name of the type");
                break;
            case 'O':
                in.take(8, "the origin");
                in.name("the name of the origin");
                break;
            case 'M':
                in.take(9, "the flags and the position");
                in.name("the prefix");
                in.take(in.number<int32_t>("the content"), "the content");
                break;
            default: throw Broken{in.p - 1, "its kind is none of protocol 1"};
        }
        in.finished();
        return true;
    }

    void begun(Cursor& in) {
        if (state_.open) throw Broken{in.p - 1, "a transaction begins within another one"};
        state_.lsn = in.number<uint64_t>("the position of the commit");
        state_.time = in.number<int64_t>("the time of the commit") + US_TO_1970;
        state_.xid = in.number<uint32_t>("the id of the transaction");
        state_.open = true;
        state_.covered = state_.lsn < state_.after;
        state_.number = 0;
        state_.half = false;
    }

    void committed(Cursor& in, Run& run) {
        in.take(1, "the flags");
        const uint8_t* const at = in.p;
        const uint64_t lsn = in.number<uint64_t>("the position of the commit");
        const uint64_t end = in.number<uint64_t>("the end of the transaction");
        in.take(8, "the time of the commit");
        if (lsn != state_.lsn) throw Broken{at, "it ends another transaction than the one that began"};
        state_.open = false;
        if (state_.covered) return;
        state_.skip = 0;
        run.position = end;
    }

    void described(Cursor& in, Run& run) {
        run.relation = in.number<uint32_t>("the relation");
        run.schema = in.name("the schema of the table");
        run.table = in.name("the name of the table");
        run.identity = static_cast<char>(in.number<uint8_t>("the replica identity"));
        const int64_t count = in.number<int16_t>("the columns");
        for (int64_t i = 0; i < count; i++) {
            RelationColumn column;
            column.is_key = in.number<uint8_t>("a column") & 1;
            column.name = in.name("the name of a column");
            column.type = in.number<uint32_t>("the type of a column");
            column.typmod = in.number<int32_t>("the type of a column");
            run.columns.push_back(std::move(column));
        }
        run.stop = Run::RELATION;
    }

    void truncated(Cursor& in, Run& run) {
        const int64_t count = in.number<int32_t>("the relations");
        run.options = in.number<uint8_t>("the options");
        bool ours = false;
        for (int64_t i = 0; i < count; i++) {
            const uint8_t* const at = in.p;
            run.truncated.push_back(in.number<uint32_t>("a relation"));
            ours = ours || !relation_of(run.truncated.back(), at).ignored;
        }
        if (ours && !state_.covered) run.stop = Run::TRUNCATE;
        else run.truncated.clear();
    }

    /* Divides the tuple at the cursor into its columns. */
    void tuple(Cursor& in, const Relation& relation, Spans& spans) {
        const uint8_t* const at = in.p;
        const int64_t count = in.number<int16_t>("a tuple");
        if (!relation.ignored && count != static_cast<int64_t>(relation.places.size()))
            throw Broken{at, "a tuple has " + std::to_string(count) + " columns, and its relation " + std::to_string(relation.places.size())};
        spans.clear();
        for (int64_t i = 0; i < count; i++) {
            const uint8_t state = in.number<uint8_t>("a tuple");
            if (state == 'n' || state == 'u') {
                spans.push_back({state == 'n' ? Span::State::null : Span::State::unchanged, nullptr, 0});
                continue;
            }
            if (SABOT_UNLIKELY(state != 'b' && state != 't')) throw Broken{in.p - 1, "the kind of a value is none of n, u, t, b"};
            const int64_t n = in.number<int32_t>("the length of a value");
            const uint8_t* const p = in.take(n, "a value");
            if (SABOT_UNLIKELY(state == 't' && !relation.ignored && relation.places[static_cast<size_t>(i)] >= 0 &&
                               root.children[static_cast<size_t>(relation.places[static_cast<size_t>(i)])]->shape.kind != Kind::text))
                throw Broken{p, "a value is in the text format"};
            spans.push_back({Span::State::value, p, n});
        }
    }

    bool change(uint8_t kind, Cursor& in, int64_t i, Run& run) {
        const uint8_t* const at = in.p;
        const Relation& relation = relation_of(in.number<uint32_t>("the relation"), at);
        uint8_t mark = in.number<uint8_t>("the kind of a tuple");
        old_.clear();
        if (kind != 'I' && (mark == 'K' || mark == 'O')) {
            is_whole_ = mark == 'O';
            tuple(in, relation, old_);
            if (kind == 'U') mark = in.number<uint8_t>("the kind of a tuple");
        } else if (kind == 'D') {
            throw Broken{in.p - 1, "the old row of a deletion is neither K nor O"};
        }
        if (kind != 'D') {
            if (mark != 'N') throw Broken{in.p - 1, "the new row is not N"};
            tuple(in, relation, new_);
        }
        in.finished();
        if (relation.ignored || state_.covered) return true;
        const bool removes = kind == 'D' || (kind == 'U' && key_changed(relation));
        const bool adds = kind != 'D';
        if (removes && !(adds && state_.half)) {
            if (full()) return false;
            give(relation, DELETE, i, run);
        }
        if (adds) {
            state_.half = removes;
            if (full()) return false;
            give(relation, kind == 'U' && !removes ? UPDATE_AFTER : INSERT, i, run);
            state_.half = false;
        }
        return true;
    }

    bool full() const { return state_.number >= state_.skip && given_ == most_; }

    bool key_changed(const Relation& relation) const {
        if (old_.empty()) return false;
        for (size_t i = 0; i < old_.size(); i++) {
            const int place = relation.places[i];
            if (place < 0 || !root.children[static_cast<size_t>(place)]->is_key) continue;
            const Span &before = old_[i], &after = new_[i];
            if (after.state == Span::State::unchanged || before.state == Span::State::unchanged) continue;
            if (before.state != after.state || before.n != after.n || (before.n && std::memcmp(before.p, after.p, static_cast<size_t>(before.n)) != 0))
                return true;
        }
        return false;
    }

    /* Counts a row of the open transaction, and puts it at the end of the columns unless it was given before. */
    void give(const Relation& relation, Op op, int64_t i, Run& run) {
        if (state_.number++ < state_.skip) return;
        given_++;
        if (run.transactions.empty() || run.transactions.back().lsn != state_.lsn)
            run.transactions.push_back({at_, state_.lsn, state_.time, state_.xid});
        const bool is_deletion = op == DELETE;
        if (!is_deletion && !old_.empty()) /* an old row that is only a key (K) has nulls for the other columns, which are no values */
            for (size_t k = 0; k < new_.size(); k++)
                if (new_[k].state == Span::State::unchanged && (is_whole_ || old_[k].state == Span::State::value)) new_[k] = old_[k];
        if (SABOT_UNLIKELY(at_ >= root.cap)) root.reserve(root.doubled());
        for (const int place : relation.missing) root.children[static_cast<size_t>(place)]->put_null(at_);
        row(relation.places, is_deletion ? old_ : new_, op, i, run);
    }

    /* Puts a row at the end of the columns, or tells what is wrong with it. */
    void row(const std::vector<int>& places, const Spans& spans, Op op, int64_t i, Run& run) {
        if (SABOT_UNLIKELY(at_ >= root.cap)) root.reserve(root.doubled());
        for (size_t k = 0; k < spans.size(); k++) {
            const int place = places[k];
            if (place < 0) continue;
            Column& column = *root.children[static_cast<size_t>(place)];
            const Span& span = spans[k];
            bool good;
            if (span.state == Span::State::value && (op != DELETE || column.is_key)) {
                good = put(column, span.p, span.n, at_);
            } else if (op == DELETE && !column.is_key) {
                column.put_null(at_);
                good = true;
            } else {
                good = span.state == Span::State::null && column.nullable && !(op == DELETE && column.is_key);
                if (good) column.put_null(at_);
                else if (span.state == Span::State::unchanged) why_ = "the update has not the value, since it did not change it; ALTER TABLE … REPLICA IDENTITY FULL makes the server send it";
                else if (op == DELETE) why_ = "a deletion has no value of this key: it is no column of the replica identity";
                else why_ = "null in a column that has no nulls";
            }
            if (SABOT_UNLIKELY(!good)) return refused(places, spans, place, op, i, run);
        }
        Column& ops = *root.children.back();
        ops.valid[at_] = 1;
        ops.data[at_] = static_cast<uint8_t>(op);
        at_++;
    }

    __attribute__((noinline, cold)) void refused(const std::vector<int>& places, const Spans& spans, int place, Op op, int64_t i, Run& run) {
        root.truncate(at_);
        BadChange bad{at_, i, place, why_, {}};
        for (size_t k = 0; k < spans.size(); k++) {
            if (places[k] < 0 || spans[k].state != Span::State::value) continue;
            const Column& column = *root.children[static_cast<size_t>(places[k])];
            if (op == DELETE && !column.is_key) continue;
            Bytes text;
            put_value(column.shape, spans[k].p, spans[k].n, text);
            bad.texts.emplace_back(places[k], std::string(reinterpret_cast<const char*>(text.data), static_cast<size_t>(text.len)));
        }
        run.bad.push_back(std::move(bad));
    }

    void chunk(const Message& given, int64_t i, Run& run) {
        static const uint8_t SIGNATURE[] = {'P', 'G', 'C', 'O', 'P', 'Y', '\n', 0xFF, '\r', '\n', 0};
        Cursor in{given.p, given.p + given.n};
        if (given.n >= 11 && std::memcmp(given.p, SIGNATURE, 11) == 0) {
            in.take(11, "the signature");
            in.take(4, "the flags");
            in.take(in.number<int32_t>("the header"), "the header");
        }
        const int64_t width = static_cast<int64_t>(root.children.size()) - 1;
        if (every_.size() != static_cast<size_t>(width)) {
            every_.clear();
            for (int k = 0; k < width; k++) every_.push_back(k);
        }
        while (in.p != in.end) {
            const uint8_t* const at = in.p;
            const int64_t count = in.number<int16_t>("a row");
            if (count == -1) return in.finished();
            if (count != width) throw Broken{at, "a row has " + std::to_string(count) + " columns, and " + std::to_string(width) + " are asked for"};
            new_.clear();
            for (int64_t k = 0; k < count; k++) {
                const int64_t n = in.number<int32_t>("the length of a value");
                if (n == -1) new_.push_back({Span::State::null, nullptr, 0});
                else new_.push_back({Span::State::value, in.take(n, "a value"), n});
            }
            row(every_, new_, INSERT, i, run);
        }
    }
    std::vector<int> every_; /* the place of each column of a COPY */

    template <class T>
    static inline bool set(Column& column, int64_t at, T value) {
        column.valid[at] = 1;
        std::memcpy(column.data + at * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
        return true;
    }
    template <class T>
    static inline bool fixed(Column& column, const uint8_t* p, int64_t n, int64_t at) {
        sized(p, n, sizeof(T));
        return set(column, at, load_big<T>(p));
    }
    bool bad(const char* why) {
        why_ = why;
        return false;
    }

    /* Writes a value at row `at` of a column. Returns false, with `why_` set, for a value that the column's type does not have. */
    bool put(Column& column, const uint8_t* p, int64_t n, int64_t at) {
        switch (column.shape.kind) {
            case Kind::bool_: return sized(p, n, 1), set<uint8_t>(column, at, *p != 0);
            case Kind::int2: return fixed<int16_t>(column, p, n, at);
            case Kind::int4: return fixed<int32_t>(column, p, n, at);
            case Kind::int8: return fixed<int64_t>(column, p, n, at);
            case Kind::oid: return sized(p, n, 4), set<int64_t>(column, at, load_big<uint32_t>(p));
            case Kind::float4: return fixed<int32_t>(column, p, n, at);
            case Kind::float8: return fixed<int64_t>(column, p, n, at);
            case Kind::decimal: return decimal(column, Numeric(p, n), at);
            case Kind::date: {
                sized(p, n, 4);
                const int32_t day = load_big<int32_t>(p);
                if (day == INT32_MAX || day == INT32_MIN) return bad("the date is infinite");
                if (day > INT32_MAX - DAYS_TO_2000) throw Broken{p, "a date is after the last one of PostgreSQL"};
                return set<int32_t>(column, at, day + static_cast<int32_t>(DAYS_TO_2000));
            }
            case Kind::time: {
                sized(p, n, 8);
                const int64_t micros = load_big<int64_t>(p);
                if (micros < 0 || micros > DAY_US) throw Broken{p, "a time is outside of a day"};
                return micros == DAY_US ? bad("the time 24:00:00 is not within a day") : set(column, at, micros);
            }
            case Kind::timestamp:
            case Kind::timestamptz: {
                sized(p, n, 8);
                const int64_t micros = load_big<int64_t>(p);
                if (micros == INT64_MAX || micros == INT64_MIN) return bad("the time is infinite");
                if (micros > INT64_MAX - US_TO_2000) return bad("the time is after the year 294246, the last one in microseconds");
                return set(column, at, micros + US_TO_2000);
            }
            case Kind::list: return list(column, p, n, at);
            case Kind::vector: return vector(column, p, n, at);
            case Kind::bytea:
                if (n) column.text.put(p, n);
                break;
            default: {
                const int64_t from = column.text.len;
                put_value(column.shape, p, n, column.text);
                const bool may_be_any = column.shape.kind == Kind::text || column.shape.kind == Kind::jsonb || column.shape.inner != nullptr;
                if (may_be_any && SABOT_UNLIKELY(!is_utf8(column.text.data + from, column.text.len - from))) return bad("the text is not UTF-8");
            }
        }
        column.valid[at] = 1;
        column.offsets[at + 1] = static_cast<int32_t>(column.text.len);
        return true;
    }

    bool decimal(Column& column, const Numeric& number, int64_t at) {
        if (number.no_number() != nullptr) {
            why_ = std::string(number.no_number()) + " is no decimal number";
            return false;
        }
        Whole whole;
        static const Whole room[] = {power_of_ten(DIGITS), power_of_ten(DIGITS - 1), power_of_ten(DIGITS - 2), power_of_ten(DIGITS - 3), power_of_ten(DIGITS - 4)};
        int64_t left = 4 * (number.weight + 1) + column.scale; /* digits that are to come, to the last one of the scale */
        for (int64_t i = 0; i < number.count; i++, left -= 4) {
            int digit = number.at(i);
            const int64_t kept = std::clamp<int64_t>(left, 0, 4); /* of the four decimal digits of this one */
            const uint64_t cut = TENS[4 - kept];
            if (digit % cut != 0) return bad("the number has more digits behind the point than its type");
            if (!whole.is_below(room[kept])) return bad("the number has more digits than its type");
            whole.times_plus(TENS[kept], static_cast<uint64_t>(digit) / cut);
        }
        for (; left > 0 && !whole.is_zero(); left -= 4) {
            const int64_t kept = std::min<int64_t>(left, 4);
            if (!whole.is_below(room[kept])) return bad("the number has more digits than its type");
            whole.times_plus(TENS[kept], 0);
        }
        if (!whole.is_below(column.limit)) return bad("the number has more digits than its type");
        if (number.sign == Numeric::MINUS) whole.negate();
        column.valid[at] = 1;
        std::memcpy(column.data + at * column.width, whole.words, static_cast<size_t>(column.width));
        return true;
    }

    bool list(Column& column, const uint8_t* p, int64_t n, int64_t at) {
        Column& items = *column.children[0];
        bool good = true;
        const int32_t dimensions = each_item(p, n, [](int64_t) {}, [&](const uint8_t* item, int64_t size) {
            if (!good) return;
            if (SABOT_UNLIKELY(items.len == items.cap)) items.reserve(items.doubled());
            if (item == nullptr) items.put_null(items.len);
            else good = put(items, item, size, items.len);
            items.len += good;
        });
        if (dimensions > 1) {
            why_ = "the array has " + std::to_string(dimensions) + " dimensions, and a list has one";
            return false;
        }
        column.valid[at] = 1;
        column.offsets[at + 1] = static_cast<int32_t>(items.len);
        return good;
    }

    bool vector(Column& column, const uint8_t* p, int64_t n, int64_t at) {
        Column& items = *column.children[0];
        Cursor in{p, p + n};
        const int64_t count = in.number<uint16_t>("a vector");
        in.take(2, "a vector");
        const uint8_t* from = in.take(count * 4, "the numbers of a vector");
        in.finished();
        for (int64_t i = 0; i < count; i++, from += 4) {
            if (SABOT_UNLIKELY(items.len == items.cap)) items.reserve(items.doubled());
            set(items, items.len++, load_big<int32_t>(from));
        }
        column.valid[at] = 1;
        column.offsets[at + 1] = static_cast<int32_t>(items.len);
        return true;
    }
};

}  // namespace sabot::pg
