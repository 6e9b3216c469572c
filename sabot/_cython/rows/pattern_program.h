/* Conditions that compare a row with the rows that a partial match has taken: programs for a machine with a stack.

        price > first * 2        OPERAND price, SLOT first, CONSTANT 2, MULTIPLIED, GREATER

   Values are null, or of one kind: signed and unsigned integers, floats, bytes; true and false are the integers 1 and 0.
   The rules for nulls are those of SQL. Integers wrap around; a division by 0 is null. */
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arrow/column.h"

namespace sabot {

enum : int { SIGNED = 0, UNSIGNED = 1, FLOAT = 2, BYTES = 3 }; /* the kind of a value */
enum : int {
    OPERAND, SLOT,    /* pushes a column of operands of the current row, or a slot of the partial match */
    CONSTANT, NOTHING,
    FRESH,            /* pushes true if the partial match has no row of a variable yet */
    FLOATED, NEGATED, NOT, IS_NULL, /* of one value; FLOATED: a signed integer as a float */
    ADDED, SUBTRACTED, MULTIPLIED, DIVIDED, FLOORED, REST, /* FLOORED: // of Python, REST: its % */
    EQUAL, UNEQUAL, LESS, AT_MOST, GREATER, AT_LEAST,
    AND, OR, XOR,
    PRESENT,          /* the first of two values, or the second if the first is null */
    CHOSEN,           /* condition, a, b: a if the condition is true, else b */
};
constexpr int DEEPEST = 32; /* the most values on the stack */

struct Value {
    uint64_t raw;
    const uint8_t* data; /* of bytes */
    int64_t size;
    bool valid;
};

struct Instruction {
    int op, kind; /* the kind of the values */
    int index;    /* of OPERAND, SLOT and FRESH */
    uint64_t raw; /* of CONSTANT */
};

using Program = std::vector<Instruction>;

template <class T>
int ordered(T a, T b) { return a < b ? -1 : a > b; }

/* Returns a number below, at or above 0 as a is less than, equal to or greater than b. NaN equals NaN, and is greater
   than all other floats. */
inline int compared(const Value& a, const Value& b, int kind) {
    if (kind == SIGNED) return ordered(static_cast<int64_t>(a.raw), static_cast<int64_t>(b.raw));
    if (kind == UNSIGNED) return ordered(a.raw, b.raw);
    if (kind == FLOAT) {
        const double x = double_of(a.raw), y = double_of(b.raw);
        return x < y ? -1 : x > y ? 1 : x == y ? 0 : (x != x) - (y != y);
    }
    const int64_t common = std::min(a.size, b.size);
    const int order = common ? std::memcmp(a.data, b.data, common) : 0;
    return order ? order : ordered(a.size, b.size);
}

inline Value computed(int op, int kind, const Value& a, const Value& b) {
    Value made = {0, nullptr, 0, a.valid && b.valid};
    if (!made.valid) return made;
    if (op >= EQUAL && op <= AT_LEAST) {
        const int order = compared(a, b, kind);
        const bool holds[] = {order == 0, order != 0, order < 0, order <= 0, order > 0, order >= 0};
        made.raw = holds[op - EQUAL];
        return made;
    }
    if (kind == FLOAT) {
        const double x = double_of(a.raw), y = double_of(b.raw);
        double value;
        switch (op) {
            case ADDED: value = x + y; break;
            case SUBTRACTED: value = x - y; break;
            case MULTIPLIED: value = x * y; break;
            case DIVIDED: value = x / y; break;
            case FLOORED: value = std::floor(x / y); break;
            default: value = x - std::floor(x / y) * y;
        }
        made.raw = bits_of(value);
        return made;
    }
    switch (op) {
        case ADDED: made.raw = a.raw + b.raw; break;
        case SUBTRACTED: made.raw = a.raw - b.raw; break;
        case MULTIPLIED: made.raw = a.raw * b.raw; break;
        case XOR: made.raw = a.raw != b.raw; break;
        default: {
            const int64_t x = static_cast<int64_t>(a.raw), y = static_cast<int64_t>(b.raw);
            if (y == 0) {
                made.valid = false;
            } else if (y == -1) { /* the least integer has no opposite: it wraps around */
                made.raw = op == FLOORED ? 0 - a.raw : 0;
            } else {
                const int64_t rest = x % y, apart = rest != 0 && (rest < 0) != (y < 0);
                made.raw = static_cast<uint64_t>(op == FLOORED ? x / y - apart : rest + (apart ? y : 0));
            }
        }
    }
    return made;
}

/* Returns AND and OR of SQL, where null stands for a value that is not known. */
inline Value decided(int op, const Value& a, const Value& b) {
    const bool deciding = op == OR;
    for (const Value* each : {&a, &b})
        if (each->valid && (each->raw != 0) == deciding) return {deciding, nullptr, 0, true};
    return {!deciding, nullptr, 0, a.valid && b.valid};
}

/* Runs a program. `load` returns the value of OPERAND, SLOT and FRESH. */
template <class Load>
Value run(const Program& program, const Load& load) {
    Value stack[DEEPEST];
    int top = -1;
    for (const Instruction& each : program) {
        switch (each.op) {
            case OPERAND: case SLOT: case FRESH: stack[++top] = load(each); break;
            case CONSTANT: stack[++top] = {each.raw, nullptr, 0, true}; break;
            case NOTHING: stack[++top] = {0, nullptr, 0, false}; break;
            case FLOATED: stack[top].raw = bits_of(static_cast<double>(static_cast<int64_t>(stack[top].raw))); break;
            case NEGATED:
                stack[top].raw = each.kind == FLOAT ? bits_of(-double_of(stack[top].raw)) : 0 - stack[top].raw;
                break;
            case NOT: stack[top].raw = !stack[top].raw; break;
            case IS_NULL: stack[top] = {!stack[top].valid, nullptr, 0, true}; break;
            case AND: case OR:
                top--;
                stack[top] = decided(each.op, stack[top], stack[top + 1]);
                break;
            case PRESENT:
                top--;
                if (!stack[top].valid) stack[top] = stack[top + 1];
                break;
            case CHOSEN:
                top -= 2;
                stack[top] = stack[top].valid && stack[top].raw ? stack[top + 1] : stack[top + 2];
                break;
            default:
                top--;
                stack[top] = computed(each.op, each.kind, stack[top], stack[top + 1]);
        }
    }
    return stack[0];
}

/* Returns true if the program leaves one value, and never has more than DEEPEST. */
inline bool fits_stack(const Program& program) {
    int depth = 0;
    for (const Instruction& each : program) {
        const int takes = each.op <= FRESH ? 0 : each.op <= IS_NULL ? 1 : each.op == CHOSEN ? 3 : 2;
        if (depth < takes) return false;
        depth += 1 - takes;
        if (depth > DEEPEST) return false;
    }
    return depth == 1;
}

}  // namespace sabot
