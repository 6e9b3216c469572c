/* Writes times as text, in formats whose parts all have a fixed width. So all texts have the same length: the text of
   the format, with the digits put into it. A day or second that equals that of the row before is not computed again.

   The Gregorian calendar of a day number is computed as in H. Hinnant, "chrono-Compatible Low-Level Date Algorithms"
   (2013).

   Nothing here needs the GIL. All functions are noexcept, except `add`, which may throw std::bad_alloc (`except +`). */
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace sabot {

struct Date {
    int64_t year;
    int32_t month, day;
};

/* Returns the date of a day, counted from 1970-01-01. */
static inline Date date_of(int64_t day) {
    const int64_t shifted = day + 719468;  // since 0000-03-01: the leap day is the last day of a year
    const int64_t era = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
    const uint32_t of_era = static_cast<uint32_t>(shifted - era * 146097);
    const uint32_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    const uint32_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    const uint32_t march = (5 * of_year + 2) / 153;  // the month, counted from March as 0
    const int32_t month = static_cast<int32_t>(march < 10 ? march + 3 : march - 9);
    return {year_of_era + era * 400 + (month <= 2), month, static_cast<int32_t>(of_year - (153 * march + 2) / 5 + 1)};
}

class TimeFormat {
  public:
    /* Sets the format. `text`: the format, with any bytes in place of digits. `per_second`: the units of the times
       per second. */
    void open(const char* text, int32_t width, int64_t per_second) {
        text_.assign(text, static_cast<size_t>(width));
        per_second_ = per_second;
        per_day_ = per_second * 86400;
    }

    /* Adds a field at offset `place` of the text: one of Y m d H M S, or f for `digits` (1 to 9) digits of the
       fraction of a second. */
    void add(char code, int32_t place, int32_t digits) {
        if (code == 'f') {
            int64_t factor = 1;
            for (int32_t i = 0; i < digits; i++) factor *= 10;
            fractions_.push_back({place, digits, factor});
        } else {
            fields_.push_back({code, place});
        }
    }

    int32_t width() const { return static_cast<int32_t>(text_.size()); }

    /* Writes width() bytes for each time to `out`; a null time gets the text of another one. Returns false, with
       `out` incomplete, if a year does not have four digits. `validity`: bit `start` is that of the first time, or
       NULL if all are valid. */
    bool write(const int64_t* times, const uint8_t* validity, int64_t start, int64_t count, uint8_t* out) {
        const size_t width = text_.size();
        int64_t day = 0;
        bool known = false;  // true if the digits in text_ are those of `day` and `second`
        int64_t second = 0;
        for (int64_t row = 0; row < count; row++, out += width) {
            const int64_t bit = start + row;
            const bool valid = validity == nullptr || ((validity[bit >> 3] >> (bit & 7)) & 1);
            if (valid) {
                const int64_t time = times[row];
                if (!known || !within(time, day, per_day_)) {
                    day = floor_of(time, per_day_);
                    if (!put_day(day)) return false;
                    known = false;
                }
                const int64_t clock = behind(time, day, per_day_);
                if (!known || !within(clock, second, per_second_)) {
                    second = clock / per_second_;
                    put_second(static_cast<int32_t>(second));
                }
                for (const Fraction& each : fractions_) put_fraction(clock - second * per_second_, each);
                known = true;
            }
            std::memcpy(out, text_.data(), width);
        }
        return true;
    }

  private:
    struct Field {
        char code;
        int32_t place;
    };
    struct Fraction {
        int32_t place;
        int32_t digits;
        int64_t factor;  // 10 ** digits
    };

    static int64_t floor_of(int64_t value, int64_t divisor) {
        const int64_t quotient = value / divisor;
        return quotient - (value % divisor < 0);
    }

    /* Returns the distance of `value` from the beginning of the `number`th interval of this length. Computed
       unsigned, because the beginning of the first day in ns is not an int64. */
    static int64_t behind(int64_t value, int64_t number, int64_t length) {
        return static_cast<int64_t>(static_cast<uint64_t>(value) - static_cast<uint64_t>(number) * static_cast<uint64_t>(length));
    }

    static bool within(int64_t value, int64_t number, int64_t length) {
        return static_cast<uint64_t>(behind(value, number, length)) < static_cast<uint64_t>(length);
    }

    void put(int32_t place, int32_t digits, uint32_t value) {
        for (int32_t i = digits - 1; i >= 0; i--) {
            text_[static_cast<size_t>(place + i)] = static_cast<char>('0' + value % 10);
            value /= 10;
        }
    }

    bool put_day(int64_t day) {
        if (day < -719528 || day > 2932896) return false;  // 0000-01-01, 9999-12-31
        const Date date = date_of(day);
        for (const Field& field : fields_) {
            if (field.code == 'Y') put(field.place, 4, static_cast<uint32_t>(date.year));
            if (field.code == 'm') put(field.place, 2, static_cast<uint32_t>(date.month));
            if (field.code == 'd') put(field.place, 2, static_cast<uint32_t>(date.day));
        }
        return true;
    }

    void put_second(int32_t second) {
        const uint32_t of_day = static_cast<uint32_t>(second);
        for (const Field& field : fields_) {
            if (field.code == 'H') put(field.place, 2, of_day / 3600);
            if (field.code == 'M') put(field.place, 2, of_day / 60 % 60);
            if (field.code == 'S') put(field.place, 2, of_day % 60);
        }
    }

    void put_fraction(int64_t part, const Fraction& each) {
        const int64_t value = per_second_ >= each.factor ? part / (per_second_ / each.factor) : part * (each.factor / per_second_);
        put(each.place, each.digits, static_cast<uint32_t>(value));
    }

    std::string text_;
    int64_t per_second_ = 1;
    int64_t per_day_ = 86400;
    std::vector<Field> fields_;
    std::vector<Fraction> fractions_;
};

}  // namespace sabot
