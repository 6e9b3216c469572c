"""The JSON kernel against RFC 8259: a table of texts that are JSON, that are not, and that the RFC leaves open; then any value and any
damage, against three other parsers (the standard library, msgspec, pyarrow.json).

The table is of behaviour, after the classes of the public JSON parsing test suites: every text stands as the value of a field, wanted
and not wanted, or as a whole payload.
"""

import io
import json
import math
import random
import re
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.json
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sabot._cython.text.json import JsonDecoder
from twins.json_rows import REFUSED, by_json, by_msgspec, row_of

# ---- values that every parser must take --------------------------------------------------------------------------

GOOD_STRINGS = {
    "empty": b'""', "one letter": b'"a"', "a space": b'" "', "ascii": b'"asd fgh"', "15 bytes": b'"123456789012345"',
    "16 bytes": b'"1234567890123456"', "17 bytes": b'"12345678901234567"', "32 bytes": b'"' + b"ab" * 16 + b'"',
    "a thousand bytes": b'"' + b"x" * 1000 + b'"', "all simple escapes": rb'"\"\\\/\b\f\n\r\t"', "escaped solidus": rb'"\/"',
    "bare solidus": b'"/"', "escaped backslash at the end": rb'"a\\"', "two escaped backslashes": rb'"\\\\"',
    "escaped backslash, then an n": rb'"\\n"', "escaped backslash, then a u": rb'"\\u0041"', "escaped quote": rb'"\""',
    "escaped quote at byte 16": b'"' + b"x" * 15 + rb'\""', "escape over a border of 16": b'"' + b"x" * 14 + rb'\u00e9z"',
    "escaped NUL": rb'"\u0000"', "escaped control": rb'"\u001f\u0012"', "escaped letter": rb'"\u0061"',
    "escaped with lower case": rb'"\u00e9"', "escaped with upper case": rb'"\u00E9"', "escaped with both": rb'"\uaBcD"',
    "escaped ASCII quote": rb'"\u0022"', "escaped backslash point": rb'"\u005C"', "escaped two byte form": rb'"\u07ff\u0080"',
    "escaped three byte form": rb'"\u0800\uffff"', "last before the surrogates": rb'"\ud7ff"',
    "first behind the surrogates": rb'"\ue000"', "surrogate pair": rb'"\ud83d\ude00"',
    "surrogate pair with both cases": rb'"\uD83d\uDE39"', "first pair": rb'"\ud800\udc00"', "last pair": rb'"\udbff\udfff"',
    "two pairs": rb'"\ud801\udc37\ud834\udd1e"', "pair between letters": rb'"a\ud83d\ude00b"',
    "escaped noncharacter": rb'"\uffff\ufdd0"', "escaped byte order mark": rb'"\ufeff"', "escaped line separators": rb'"\u2028\u2029"',
    "delete": b'"\x7f"', "two byte UTF-8": b'"\xc2\x80\xdf\xbf"', "three byte UTF-8": b'"\xe0\xa0\x80\xef\xbf\xbf"',
    "four byte UTF-8": b'"\xf0\x90\x80\x80"', "the last code point": b'"\xf4\x8f\xbf\xbf"',
    "just below the surrogates": b'"\xed\x9f\xbf"', "just above the surrogates": b'"\xee\x80\x80"', "line separator": b'"\xe2\x80\xa8"',
    "paragraph separator": b'"\xe2\x80\xa9"', "next line": b'"\xc2\x85"', "no-break space": b'"\xc2\xa0"',
    "byte order mark in text": b'"\xef\xbb\xbf"', "replacement character": b'"\xef\xbf\xbd"',
    "UTF-8 over a border of 16": b'"' + b"x" * 15 + b'\xf0\x9f\x98\x80y"', "combining": b'"e\xcc\x81"', "brackets": b'"{}[],:"',
    "a comment": b'"/* // */"', "looks like a number": b'"1e5"', "looks like null": b'"null"',
}  # fmt: skip
GOOD_NUMBERS = {
    "zero": b"0", "minus zero": b"-0", "minus zero with a point": b"-0.0", "one": b"1", "minus one": b"-1", "two digits": b"10",
    "eight digits": b"12345678", "nine digits": b"123456789", "16 digits": b"1234567890123456", "17 digits": b"12345678901234567",
    "19 digits": b"1234567890123456789", "largest int64": b"9223372036854775807", "smallest int64": b"-9223372036854775808",
    "a fraction": b"0.5", "fraction with zeros behind": b"1.500000", "fraction of zeros": b"1.000000000000000000000",
    "long zeros before": b"0.000000000000000001", "exponent": b"1e5", "exponent in capitals": b"1E5", "exponent with plus": b"1e+5",
    "exponent with minus": b"1e-5", "exponent of zero": b"0e0", "zero to a high power": b"0e999", "zero to a low power": b"0.0e-999",
    "exponent with zeros before": b"1e0005", "exponent of minus zero": b"1e-0", "fraction and exponent": b"123.456e78",
    "negative all over": b"-1.5E-7", "0.1": b"0.1", "0.3 as a sum": b"0.30000000000000004", "1e22": b"1e22", "1e23": b"1e23",
    "8.5e-23": b"8.5e-23", "2 to 53 plus 1": b"9007199254740993.0", "2 to 53 plus 3": b"9007199254740995.0",
    "half to even below": b"9007199254740992.5", "largest double": b"1.7976931348623157e308",
    "last that rounds to it": b"1.7976931348623158e308", "smallest normal": b"2.2250738585072014e-308",
    "largest subnormal": b"2.2250738585072011e-308", "between subnormal and normal": b"2.2250738585072012e-308",
    "smallest subnormal": b"5e-324", "rounds up to the smallest": b"2.4703282292062328e-324",
    "rounds down to nothing": b"2.4703282292062327e-324", "far below all": b"1e-400",
    "below all but by its exponent": b"1e-99999999999999999999", "many digits": b"3." + b"14159265358979323846" * 5,
    "a point late and a power early": b"1" + b"0" * 330 + b"e-330", "a power late and a point early": b"0." + b"0" * 330 + b"1e331",
    "half way between two doubles": b"1.00000000000000011102230246251565404236316680908203125",
    "just above half way": b"1.00000000000000011102230246251565404236316680908203126",
    "just below half way": b"1.00000000000000011102230246251565404236316680908203124",
    "half way, decided by digit 800": b"1.00000000000000011102230246251565404236316680908203125" + b"0" * 750 + b"1",
}  # fmt: skip
GOOD_STRUCTURES = {
    "null": b"null", "true": b"true", "false": b"false", "empty list": b"[]", "empty list with space": b"[ ]", "list in list": b"[[]]",
    "list of one": b"[1]", "list with all spaces": b"[\t1 \r,\n2 ]", "list of nulls": b"[null,null]", "list of strings": b'["a","b"]',
    "list of lists": b"[[1],[2,3]]", "list of objects": b'[{"a":1},{"a":2}]', "list with a null in it": b"[1,null,2]",
    "empty object": b"{}", "empty object with space": b"{ \n}", "object": b'{"a":1}', "object with spaces": b'{ "a"\t:\n1 , "b" : 2 }',
    "object in object": b'{"a":{"b":{"c":null}}}', "empty name": b'{"":0}', "escaped name": rb'{"\u0061\n":1}',
    "name with NUL": rb'{"a\u0000b":1}', "name in UTF-8": '{"ключ":1}'.encode(), "long name": b'{"' + b"n" * 300 + b'":1}',
    "names of 13 to 15 bytes": b'{"1234567890123":1,"12345678901234":2,"123456789012345":3}', "same name twice": b'{"a":1,"a":2}',
    "same name and value twice": b'{"a":1,"a":1}', "same name escaped": rb'{"a":1,"\u0061":2}', "null last": b'{"a":1,"a":null}',
    "objects of one name merge not": b'{"a":{"b":1},"a":{"c":2}}', "lists of one name": b'{"a":[1,2,3],"a":[4]}',
    "inner name twice": b'{"a":{"b":1,"b":2}}', "inner name twice in a list": b'{"a":[{"b":1,"b":2},{"b":3}]}',
    "a hundred lists deep": b"[" * 100 + b"]" * 100, "many fields": json.dumps({f"f{i}": i for i in range(2000)}).encode(),
    "a long list": b"[" + b",".join(b"%d" % i for i in range(3000)) + b"]",
}  # fmt: skip
GOOD = {
    f"{kind}: {name}": text
    for kind, texts in (("string", GOOD_STRINGS), ("number", GOOD_NUMBERS), ("structure", GOOD_STRUCTURES))
    for name, text in texts.items()
}

# ---- values that no parser may take ------------------------------------------------------------------------------

NOT_STRINGS = {
    "not closed": b'"', "not closed after text": b'"abc', "not closed by an escaped quote": rb'"\"', "closed by another quote": b"\"a'",
    "single quotes": b"'a'", "no quotes": b"abc", "escaped quotes outside": rb"\"a\"", "smart quotes": "“a”".encode(),
    "newline inside": b'"a\nb"', "tab inside": b'"a\tb"', "NUL inside": b'"a\x00b"', "carriage return inside": b'"a\rb"',
    "every control: 0x01": b'"\x01"', "0x08": b'"\x08"', "0x0b": b'"\x0b"', "0x1f": b'"\x1f"',
    "control at byte 16": b'"' + b"x" * 16 + b'\x02"', "control after an escape": b'"\\n\n"', "backslash before a newline": b'"\\\n"',
    "backslash alone": b'"\\', "escape of a capital": rb'"\N"', "escape of x": rb'"\x41"', "escape of a digit": rb'"\0"',
    "escape of a quote": rb'"' + b"\\'" + b'"', "escape of a": rb'"\a"', "escape of U": rb'"\U00e9"', "escape of a space": rb'"\ "',
    "escape of non-ASCII": b'"\\\xc3\xa9"', "u and nothing": rb'"\u"', "u and one digit": rb'"\u1"', "u and three digits": rb'"\u12a"',
    "u and a g": rb'"\u12g4"', "u and a sign": rb'"\u+123"', "u and spaces": rb'"\u 123"', "u in braces": rb'"\u{41}"',
    "u cut off by the end": b'"\\u00', "half a pair, then a broken escape": rb'"\ud800\u1"', "half a pair, then x": rb'"\ud800\x"',
    "two strings": b'"a""b"', "two strings and a space": b'"a" "b"', "a letter behind": b'"a"b', "a prefix": b'u"a"',
    "plus": b'"a"+"b"', "back quotes": b"`a`",
}  # fmt: skip
NOT_UTF8 = {
    "a lone continuation": b"\x80", "the last continuation": b"\xbf", "two of them": b"\x81\x81", "overlong NUL": b"\xc0\x80",
    "overlong solidus": b"\xc0\xaf", "overlong C1": b"\xc1\xbf", "overlong in three": b"\xe0\x80\xaf",
    "largest overlong in three": b"\xe0\x9f\xbf", "overlong in four": b"\xf0\x80\x80\xaf",
    "largest overlong in four": b"\xf0\x8f\xbf\xbf", "overlong in five": b"\xf8\x80\x80\x80\xaf",
    "overlong in six": b"\xfc\x80\x80\x80\x80\xaf", "first surrogate": b"\xed\xa0\x80", "last surrogate": b"\xed\xbf\xbf",
    "a pair in UTF-8": b"\xed\xa0\xbd\xed\xb8\x80", "beyond U+10FFFF": b"\xf4\x90\x80\x80", "far beyond": b"\xf7\xbf\xbf\xbf",
    "F5": b"\xf5\x80\x80\x80", "FE": b"\xfe", "FF": b"\xff", "two bytes cut off": b"\xc3", "three cut off at two": b"\xe2\x82",
    "three cut off at one": b"\xe2", "four cut off at three": b"\xf0\x9f\x98", "four cut off at two": b"\xf0\x9f",
    "cut off, then a letter": b"\xe2\x82a", "cut off, then a new one": b"\xe2\x82\xc3\xa9", "latin 1": b"caf\xe9",
    "UTF-16": "aé".encode("utf-16-le"), "after good text": "ключ".encode() + b"\xff",
}  # fmt: skip
NOT_NUMBERS = {
    "plus": b"+1", "two minus": b"--1", "minus alone": b"-", "minus and space": b"- 1", "plus minus": b"+-1", "zero before": b"01",
    "zeros before": b"007", "minus and zero before": b"-012", "two zeros": b"00", "minus two zeros": b"-00",
    "zero before a fraction": b"01.5", "point first": b".5", "minus point": b"-.5", "point last": b"1.", "point alone": b".",
    "two points": b"1.2.3", "point and exponent": b"1.e5", "exponent alone": b"e5", "exponent without digits": b"1e",
    "exponent with a sign only": b"1e+", "exponent with two signs": b"1e+-5", "exponent with a fraction": b"1e1.5",
    "two exponents": b"1e5e5", "E with minus": b"1E-", "exponent after a space": b"1 e5", "hexadecimal": b"0x1F", "octal": b"0o17",
    "binary": b"0b11", "underscore": b"1_000", "comma in it": b"1,000", "apostrophe": b"1'000", "space in it": b"1 000",
    "letter behind": b"1a", "suffix": b"1L", "suffix f": b"1.5f", "percent": b"5%", "NaN": b"NaN", "nan": b"nan", "minus NaN": b"-NaN",
    "Infinity": b"Infinity", "minus Infinity": b"-Infinity", "plus Infinity": b"+Infinity", "Inf": b"Inf", "1.#INF": b"1.#INF",
    "full width digit": "１".encode(), "Arabic digit": "١".encode(), "superscript": "1²".encode(),
    "minus sign of Unicode": "−1".encode(), "a fraction of letters": b"1.a", "0.e1": b"0.e1", "0e": b"0e", "-a": b"-a", "1ea": b"1ea",
    "a sum": b"1+1", "a division": b"1/2", "NUL behind": b"1\x00", "in parentheses": b"(1)", "9 digits and a letter": b"123456789x",
    "8 digits and a zero byte": b"12345678\x00", "zero, then eight digits": b"012345678",
}  # fmt: skip
NOT_STRUCTURES = {
    "nothing": b"", "a space": b" ", "nul": b"nul", "nulll": b"nulll", "NULL": b"NULL", "None": b"None", "tru": b"tru",
    "truee": b"truee", "True": b"True", "TRUE": b"TRUE", "fals": b"fals", "falsee": b"falsee", "False": b"False",
    "undefined": b"undefined", "nil": b"nil", "true false": b"true false", "list not closed": b"[", "not closed after a value": b"[1",
    "not closed after a comma": b"[1,", "not closed after a list": b"[[1]", "comma last": b"[1,]", "two commas last": b"[1,,]",
    "comma first": b"[,1]", "comma alone": b"[,]", "two commas": b"[1,,2]", "no comma": b"[1 2]", "no comma, strings": b'["a" "b"]',
    "semicolon": b"[1;2]", "colon": b"[1:2]", "closed too often": b"[1]]", "closed by a brace": b"[1}", "opened by a brace": b"{1]",
    "closing alone": b"]", "inner not closed": b"[[1,2]", "space control: vertical tab": b"[\v1]", "form feed": b"[\f1]",
    "no-break space": b"[\xc2\xa01]", "ideographic space": b"[\xe3\x80\x801]", "mark inside": b"[\xef\xbb\xbf1]",
    "word joiner": b"[\xe2\x81\xa01]", "NUL": b"[\x001]", "parentheses": b"(1)", "angle brackets": b"<1>", "spread": b"[...]",
    "star": b"[*]", "deep and not closed": b"[" * 400, "very deep and not closed": b"[" * 100_000,
    "very deep objects": b'{"a":' * 100_000, "deep and mixed, not closed": b'[{"a":' * 200, "object not closed": b"{",
    "no value": b'{"a"', "colon and no value": b'{"a":', "value and no end": b'{"a":1', "comma and no end": b'{"a":1,',
    "comma behind": b'{"a":1,}', "two commas behind": b'{"a":1,,}', "comma before": b'{,"a":1}', "only a comma": b"{,}",
    "comma for colon": b'{"a",1}', "two colons": b'{"a"::1}', "equals": b'{"a"=1}', "arrow": b'{"a"=>1}', "no colon": b'{"a" 1}',
    "no comma between fields": b'{"a":1 "b":2}', "two commas between": b'{"a":1,,"b":2}', "semicolon in it": b'{"a":1;"b":2}',
    "name alone": b'{"a"}', "colon alone": b"{:}", "value alone": b"{1}", "list as a name": b"{[1]:1}", "name not in quotes": b"{a:1}",
    "name in single quotes": b"{'a':1}", "number as a name": b"{1:1}", "null as a name": b"{null:1}", "true as a name": b"{true:1}",
    "object as a name": b"{{}:1}", "name not closed": b'{"a:1}', "closed twice": b'{"a":1}}', "closed by a bracket": b'{"a":1]',
    "two colons and values": b'{"a":1:2}', "name twice": b'{"a" "b":1}', "name with a bad escape": rb'{"\x61":1}',
    "name with a control": b'{"a\tb":1}', "name that is not UTF-8": b'{"\xff":1}', "comment behind": b"1 // one",
    "comment": b"/* one */ 1", "comment in a list": b"[1,/**/2]", "comment in an object": b'{"a":/**/1}', "hash comment": b"1 # one",
    "a comma": b",", "a colon": b":", "an asterisk": b"*", "a tilde": b"~", "a backslash": b"\\", "two values": b"1 2",
    "two values and a newline": b"1\n2", "a value, then a bracket": b"1]", "a value, then a quote": b'1"', "variable": b"${x}",
    "function": b"f(1)", "date": b"new Date()", "date without quotes": b"2024-01-01", "a single letter": b"d",
    "a single bracket in quotes not closed": b'["',
}  # fmt: skip
BAD = {
    **{f"string: {name}": text for name, text in NOT_STRINGS.items()},
    **{f"UTF-8: {name}": b'"' + text + b'"' for name, text in NOT_UTF8.items()},
    **{f"number: {name}": text for name, text in NOT_NUMBERS.items()},
    **{f"structure: {name}": text for name, text in NOT_STRUCTURES.items()},
}
# ---- what the RFC leaves open: (text, type, value if wanted or REFUSED, taken where nobody wants it) ------------------

OPEN = {
    "a number beyond all doubles": (b"1e400", pa.float64(), ValueError, True),
    "a negative one": (b"-1e400", pa.float64(), ValueError, True),
    "the first that rounds beyond them": (b"1.797693134862315808e308", pa.float64(), ValueError, True),
    "a huge exponent": (b"1e999999999999999999999", pa.float64(), ValueError, True),
    "a number beyond float32": (b"3.4028236e38", pa.float32(), ValueError, True),
    "the largest float32": (b"3.4028235e38", pa.float32(), 3.4028234663852886e38, True),
    "a float32 below all": (b"1e-46", pa.float32(), 0.0, True),
    "one beyond int64": (b"9223372036854775808", pa.int64(), ValueError, True),
    "one below int64": (b"-9223372036854775809", pa.int64(), ValueError, True),
    "the same as uint64": (b"9223372036854775808", pa.uint64(), 2**63, True),
    "the largest uint64": (b"18446744073709551615", pa.uint64(), 2**64 - 1, True),
    "one beyond uint64": (b"18446744073709551616", pa.uint64(), ValueError, True),
    "20 digits of nine": (b"99999999999999999999", pa.uint64(), ValueError, True),
    "a hundred digits": (b"1" * 100, pa.int64(), ValueError, True),
    "a hundred digits as a float": (b"1" * 100, pa.float64(), float("1" * 100), True),
    "minus one as unsigned": (b"-1", pa.uint64(), ValueError, True),
    "minus zero as unsigned": (b"-0", pa.uint8(), 0, True),
    "minus zero as an integer": (b"-0", pa.int64(), 0, True),
    "minus zero as a float": (b"-0", pa.float64(), -0.0, True),
    "one beyond int8": (b"128", pa.int8(), ValueError, True),
    "a float for an integer": (b"1.5", pa.int64(), ValueError, True),
    "a whole float for an integer": (b"1.0", pa.int64(), ValueError, True),
    "an exponent for an integer": (b"1e2", pa.int64(), ValueError, True),
    "an integer for a float": (b"3", pa.float64(), 3.0, True),
    "a string for a number": (b'"1"', pa.int64(), ValueError, True),
    "a number for a string": (b"1", pa.string(), ValueError, True),
    "a number for a boolean": (b"1", pa.bool_(), ValueError, True),
    "a boolean for a number": (b"true", pa.int64(), ValueError, True),
    "a value for null": (b"0", pa.null(), ValueError, True),
    "an object for a list": (b"{}", pa.list_(pa.int64()), ValueError, True),
    "a list for an object": (b"[]", pa.struct([("a", pa.int64())]), ValueError, True),
    "a list of two types": (b'[1,"a"]', pa.list_(pa.int64()), ValueError, True),
    "a first half of a pair": (rb'"\ud800"', pa.string(), ValueError, True),
    "a second half": (rb'"\udc00"', pa.string(), ValueError, True),
    "two first halves": (rb'"\ud800\ud800"', pa.string(), ValueError, True),
    "a pair the wrong way round": (rb'"\udc00\ud800"', pa.string(), ValueError, True),
    "half a pair and a letter": (rb'"\ud800abc"', pa.string(), ValueError, True),
    "half a pair and an escape": (rb'"\ud800\n"', pa.string(), ValueError, True),
    "half a pair and a pair": (rb'"\ud800\ud83d\ude00"', pa.string(), ValueError, True),
    "half a pair as bytes": (rb'"\ud800"', pa.binary(), ValueError, True),
    "half a pair in a name": (rb'{"\ud800":1,"a":2}', pa.struct([("a", pa.int64())]), {"a": 2}, True),
    "511 lists": (b"[" * 511 + b"]" * 511, pa.string(), ValueError, True),
    "512 lists, and the payload makes 513": (b"[" * 512 + b"]" * 512, pa.string(), ValueError, False),
    "511 objects": (b'{"a":' * 511 + b"1" + b"}" * 511, pa.struct([]), {}, True),
    "512 objects": (b'{"a":' * 512 + b"1" + b"}" * 512, pa.struct([]), ValueError, False),
    "thousands of lists": (b"[" * 100_000 + b"]" * 100_000, pa.list_(pa.list_(pa.int8())), ValueError, False),
}  # fmt: skip

# ---- whole payloads ----------------------------------------------------------------------------------------------

PAYLOADS = {
    "an object": (b'{"unknown":1}', True), "space around": (b" \t\r\n{}\n\r\t ", True), "a mark before": (b"\xef\xbb\xbf{}", True),
    "a mark and space": (b"\xef\xbb\xbf {}", True), "many spaces": (b" " * 5000 + b"{}" + b" " * 5000, True), "no bytes": (b"", False),
    "only spaces": (b"   ", False), "only a mark": (b"\xef\xbb\xbf", False), "half a mark": (b"\xef\xbb{}", False),
    "two marks": (b"\xef\xbb\xbf\xef\xbb\xbf{}", False), "space before a mark": (b" \xef\xbb\xbf{}", False),
    "a mark behind": (b"{}\xef\xbb\xbf", False), "UTF-16 with a mark": ('{"v":1}'.encode("utf-16"), False),
    "UTF-16 without": ('{"v":1}'.encode("utf-16-be"), False), "UTF-32": ('{"v":1}'.encode("utf-32"), False), "a list": (b"[]", False),
    "a number": (b"1", False), "a string": (b'"a"', False), "null": (b"null", False), "true": (b"true", False),
    "a list of objects": (b'[{"v":1}]', False), "two objects": (b"{}{}", False), "two objects and a space": (b"{} {}", False),
    "two objects and a newline": (b"{}\n{}", False), "two objects and a comma": (b"{},{}", False), "a letter behind": (b"{}x", False),
    "a brace behind": (b"{}}", False), "a bracket behind": (b"{}]", False), "a NUL behind": (b"{}\x00", False),
    "a comma behind": (b"{},", False), "a quote behind": (b'{}"', False), "a letter before": (b"x{}", False),
    "a NUL before": (b"\x00{}", False), "a record separator before": (b"\x1e{}", False), "vertical tab around": (b"\v{}\v", False),
    "form feed behind": (b"{}\f", False), "no-break space around": (b"\xc2\xa0{}", False),
    "a line separator behind": (b"{}\xe2\x80\xa8", False), "comment behind": (b"{}//", False), "comment before": (b"/**/{}", False),
    "an opening only": (b"{", False), "a closing only": (b"}", False), "both wrong way round": (b"}{", False),
    "an object in an object": (b"{{}}", False), "a string to the end": (b'{"v":"}', False), "a name to the end": (b'{"v}', False),
    "an escape to the end": (b'{"v":"\\}', False), "u to the end": (b'{"v":"\\u}', False),
    "UTF-8 cut off by the end": (b'{"v":"\xe2\x82}', False), "list not closed in an object": (b'{"v":[}', False),
    "true cut off": (b'{"v":tru}', False), "t to the end": (b'{"v":t}', False), "n to the end": (b'{"v":n}', False),
    "f to the end": (b'{"v":fal}', False), "minus to the end": (b'{"v":-}', False), "point to the end": (b'{"v":1.}', False),
    "e to the end": (b'{"v":1e}', False), "inner brace missing": (b'{"v":{"a":1}', False),
    "two inner braces missing": (b'{"v":{"a":{"b":2}', False),
}  # fmt: skip

GUARD = b'{"before":1,"v":null,"after":2}'
AROUND = [("before", pa.int64()), ("after", pa.int64())]
WANTED_TYPES = [
    pa.string(), pa.binary(), pa.bool_(), pa.int64(), pa.uint8(), pa.float64(), pa.float32(), pa.null(), pa.timestamp("ms"), pa.date32(),
    pa.list_(pa.float64()), pa.list_(pa.string()), pa.struct([("a", pa.int64())]), pa.list_(pa.struct([("a", pa.list_(pa.int8()))])),
]  # fmt: skip
UNWANTED = JsonDecoder(pa.schema(AROUND))
WANTED = [JsonDecoder(pa.schema([AROUND[0], ("v", data_type), AROUND[1]])) for data_type in WANTED_TYPES]


def row(text: bytes) -> bytes:
    return b'{"before":1,"v":' + text + b',"after":2}'


def decoded(decoder: JsonDecoder, payload: bytes):
    """The payload's row, or its BadRow. Its neighbours must come through whatever it is, and lines must say the same."""
    batch, bad = decoder.decode([GUARD, payload, GUARD])
    batch.validate(full=True)
    rows = batch.to_pylist()
    assert rows[0] == rows[-1] == {name: {"before": 1, "v": None, "after": 2}[name] for name in decoder.schema.names}
    assert len(rows) + len(bad) == 3
    assert not bad or bad[0].row == 1
    if b"\n" not in payload and payload.strip():
        lines, bad_lines = decoder.decode_lines(b"\n".join([GUARD, payload, GUARD]))
        assert lines.equals(batch) or repr(lines.to_pylist()) == repr(rows)
        assert [(line.row, line.reason) for line in bad_lines] == [(entry.row, entry.reason) for entry in bad]
        for line in bad_lines:
            assert (line.start, line.end) == (len(GUARD) + 1, len(GUARD) + 1 + len(payload.removesuffix(b"\r")))
    return bad[0] if bad else rows[1]


def type_of(value):
    """The Arrow type that holds the value; None: there is none."""
    if isinstance(value, list):
        types = {type_of(item) for item in value if item is not None}
        return (
            pa.list_(types.pop())
            if len(types) == 1 and None not in types
            else pa.list_(pa.null())
            if not types
            else None
        )
    if isinstance(value, dict):
        fields = [(name, type_of(item)) for name, item in value.items()]
        return pa.struct(fields) if all(data_type is not None for _, data_type in fields) else None
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), type(None): pa.null()}[
        type(value)
    ]


def depth_of(data_type) -> int:
    return 1 + max((depth_of(data_type.field(i).type) for i in range(data_type.num_fields)), default=0)


def test_the_table_is_not_smaller_than_it_was():
    assert len(GOOD) + len(BAD) + len(OPEN) + len(PAYLOADS) > 450


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_is_json_is_read_as_the_other_parsers_read_it(text):
    expected = by_json(row(text))["v"]
    assert decoded(UNWANTED, row(text)) == {"before": 1, "after": 2}
    assert repr(by_msgspec(row(text))["v"]) == repr(expected)
    data_type = type_of(expected)
    if depth_of(data_type) > 50:
        return  # no Arrow type is that deep
    schema = pa.schema([("before", pa.int64()), ("v", data_type), ("after", pa.int64())])
    assert repr(decoded(JsonDecoder(schema), row(text))["v"]) == repr(expected)
    if isinstance(expected, str | bool | None):
        options = pyarrow.json.ParseOptions(explicit_schema=schema)
        assert pyarrow.json.read_json(io.BytesIO(row(text)), parse_options=options).to_pylist()[0]["v"] == expected


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_json_is_set_apart_wanted_or_not_as_the_other_parsers_refuse_it(text):
    for parser in (by_json, by_msgspec):
        if len(text) < 10_000:  # the others' limits are not ours
            with pytest.raises(ValueError):
                parser(row(text))
    reasons = [decoded(decoder, row(text)).reason for decoder in [UNWANTED, *WANTED]]
    assert all(" at byte " in reason for reason in reasons)
    assert any("JSON" in reason for reason in reasons)


@pytest.mark.parametrize(("text", "data_type", "value", "passed_over"), OPEN.values(), ids=OPEN)
def test_what_the_rfc_leaves_open_is_decided_as_documented(text, data_type, value, passed_over):
    unwanted = decoded(UNWANTED, row(text))
    assert isinstance(unwanted, dict) is passed_over, unwanted
    decoder = JsonDecoder(pa.schema([AROUND[0], ("v", data_type), AROUND[1]]))
    wanted = decoded(decoder, row(text))
    if value is ValueError:
        assert wanted.reason.startswith("field v" if passed_over else "invalid JSON: nested deeper than 512")
    else:
        assert repr(wanted) == repr({"before": 1, "v": value, "after": 2})


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(("payload", "good"), PAYLOADS.values(), ids=PAYLOADS)
def test_a_payload_is_one_object_and_nothing_else(payload, good):
    for decoder in (UNWANTED, *WANTED):
        result = decoded(decoder, payload)
        assert isinstance(result, dict) is good, result
    if good:
        assert isinstance(by_json(payload), dict)


# ---- any value under any schema ------------------------------------------------------------------------------------

NAMES = ["a", "b", "id", "fourteen letters", 'q"', "\\", "a\n", "ключ", "", "exactly13char"]
SCALARS = [
    pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float64(),
    pa.float32(), pa.string(), pa.binary(), pa.null(),
]  # fmt: skip


def fields_of(types):
    return st.lists(
        st.tuples(st.sampled_from(NAMES), types, st.integers(0, 5)), max_size=4, unique_by=lambda field: field[0]
    ).map(
        lambda fields: [
            pa.field(name, data_type, nullable=data_type == pa.null() or rare > 0) for name, data_type, rare in fields
        ]
    )


types = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: inner.map(pa.list_) | fields_of(inner).map(pa.struct),
    max_leaves=8,
)
schemas = fields_of(types).map(pa.schema)


class Writer:
    """Values that mostly fit a type, as text: spaces, escapes, other forms of a number, fields missing, twice and unknown."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def often(self, times: int) -> bool:
        return self.random.randrange(times) > 0

    def space(self) -> str:
        return "" if self.often(6) else self.random.choice([" ", "\t", "\r", "  \t "])

    def text(self, value: str) -> str:
        def letter(c: str) -> str:
            if c in '"\\' or ord(c) < 32 or not self.often(12):
                return "".join(f"\\u{unit:04x}" for unit in np.frombuffer(c.encode("utf-16-le"), "<u2"))
            return c

        return '"' + "".join(map(letter, value)) + '"'

    def number(self, value: int | float) -> str:
        if isinstance(value, int) or value == 0:
            return repr(value)  # all but repr write -0.0 as -0, which the oracles read as an integer
        return self.random.choice([repr, "{:.17g}".format, "{:.20e}".format, "{:.15G}".format, "{:.2f}".format])(value)

    def some_text(self) -> str:
        return "".join(self.random.choice('aZ9 é€😀"\\/\n\x00\x7f\u2028') for _ in range(self.random.randrange(30)))

    def some_float(self) -> float:
        bits = self.random.getrandbits(64)
        value = float(np.uint64(bits).view(np.float64))
        return self.random.choice([value if math.isfinite(value) else 0.0, self.random.uniform(-1e3, 1e3), -0.0])

    def anything(self, depth: int = 0) -> str:
        kind = self.random.randrange(7 if depth < 4 else 5)
        if kind < 3:
            return self.random.choice(["null", "true", "false", "[]", "{}"])
        if kind == 3:
            return self.text(self.some_text())
        if kind == 4:
            return self.number(self.some_float()) if self.often(2) else str(self.random.getrandbits(70) - 2**69)
        inner = [self.anything(depth + 1) for _ in range(self.random.randrange(4))]
        if kind == 5:
            return f"[{self.space()}{','.join(inner)}]"
        return "{" + ",".join(f"{self.text(self.random.choice(NAMES))}:{self.space()}{item}" for item in inner) + "}"

    def value(self, data_type) -> str:
        if not self.often(40):
            return self.anything()
        if not self.often(10):
            return "null"
        if pa.types.is_boolean(data_type):
            return self.random.choice(["true", "false"])
        if pa.types.is_integer(data_type):
            bits, unsigned = data_type.bit_width, pa.types.is_unsigned_integer(data_type)
            low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            edge = (
                self.random.choice([low, high, 0, 0, 0, 0])
                if self.often(30)
                else self.random.choice([low - 1, high + 1])
            )
            return str(edge or self.random.randint(low, high))
        if pa.types.is_floating(data_type):
            return self.number(
                self.some_float() if data_type == pa.float64() else float(np.float32(self.random.uniform(-1e9, 1e9)))
            )
        if data_type in (pa.string(), pa.binary()):
            return self.text(self.some_text())
        if pa.types.is_list(data_type):
            items = [self.space() + self.value(data_type.value_type) for _ in range(self.random.randrange(4))]
            return f"[{','.join(items)}{self.space()}]"
        return self.object(data_type) if pa.types.is_struct(data_type) else "null"

    def object(self, fields) -> str:
        parts = []
        for field in self.random.sample(list(fields), len(list(fields))):
            if not self.often(12) and field.nullable:
                continue
            if not self.often(10):
                parts.append((field.name, self.anything() if self.often(2) else self.value(field.type)))
            parts.append((field.name, self.value(field.type)))
            if not self.often(6):
                parts.append((self.random.choice(["unknown", "é", "x" * 40]), self.anything()))
        return f"{self.space()},".join(
            f"{self.space()}{self.text(name)}{self.space()}:{self.space()}{value}" for name, value in parts
        ).join("{}")


def expected_row(schema, payload: bytes):
    """The row that the oracles agree on, None: a bad one."""
    try:
        value = by_json(payload)
    except ValueError:
        with pytest.raises(ValueError):
            by_msgspec(payload)
        return None
    try:
        assert repr(by_msgspec(payload)) == repr(value)
    except ValueError:  # what it refuses beside: half a surrogate pair anywhere, numbers beyond doubles
        assert re.search(rb"(?i)\\ud[89a-f]|[0-9]e[+0-9]|[0-9]{300}", payload)
    try:
        return row_of(schema, value)
    except REFUSED:
        return None


@settings(max_examples=150, deadline=None)
@given(schemas, st.integers(0, 2**32))
def test_any_value_under_any_schema_is_what_the_oracles_read(schema, seed):
    writer = Writer(seed)
    decoder = JsonDecoder(schema)
    for _ in range(2):
        payloads = [writer.object(schema).encode() for _ in range(8)]
        rows = [expected_row(schema, payload) for payload in payloads]
        good = [row for row in rows if row is not None]
        batch, bad = decoder.decode(payloads)
        batch.validate(full=True)
        assert [entry.row for entry in bad] == [i for i, row in enumerate(rows) if row is None]
        assert repr(batch.to_pylist()) == repr(good)
        lines, bad_lines = decoder.decode_lines(b"\n".join(payloads))
        assert repr(lines.to_pylist()) == repr(good)
        assert [line.row for line in bad_lines] == [entry.row for entry in bad]


def without_signs_of_zero(rows) -> str:
    """As text; damage makes -0 of a float, and the oracles read that as an integer without sign."""
    return re.sub(r"-0\.0(?![0-9e])", "0.0", repr(rows))


@settings(max_examples=150, deadline=None)
@given(schemas, st.integers(0, 2**32))
@example(pa.schema([("a", pa.int64())]), 0)
def test_any_damage_is_refused_by_all_or_read_alike_by_all(schema, seed):
    writer = Writer(seed)
    decoder = JsonDecoder(schema)
    payloads = []
    for _ in range(12):
        payload = bytearray(writer.object(schema).encode())
        for _ in range(writer.random.randrange(1, 4)):
            at, other = writer.random.randrange(len(payload) + 1), writer.random.randrange(len(payload) + 1)
            piece = writer.random.choice(
                [*b'{}[]",:\\0e.-tn \x00\x1f\x7f\x80\xc0\xe2\xff', b"null", b"\\ud800", b"1e9", b'"a":']
            )
            piece = bytes([piece]) if isinstance(piece, int) else piece
            match writer.random.randrange(4):
                case 0:
                    payload[at:at] = piece
                case 1:
                    payload[at : at + len(piece)] = piece
                case 2:
                    del payload[min(at, other) : max(at, other)]
                case 3:
                    payload[at:at] = payload[min(at, other) : max(at, other)]
        payloads.append(bytes(payload))
    rows = [expected_row(schema, payload) for payload in payloads]
    batch, bad = decoder.decode(payloads)
    batch.validate(full=True)
    assert [entry.row for entry in bad] == [i for i, row in enumerate(rows) if row is None]
    assert without_signs_of_zero(batch.to_pylist()) == without_signs_of_zero([row for row in rows if row is not None])


# ---- floats ----------------------------------------------------------------------------------------------------------


def read_floats(texts: list[str], data_type) -> np.ndarray:
    batch, bad = JsonDecoder(pa.schema([("x", data_type)])).decode([f'{{"x":{text}}}'.encode() for text in texts])
    assert not bad, (texts[bad[0].row], bad[0])
    return batch.column(0).to_numpy()


def test_doubles_of_random_bits_are_read_exactly_in_every_notation():
    bits = np.random.default_rng(5).integers(0, 2**64, 3000, dtype=np.uint64)
    bits[:600] &= (1 << 52) - 1 | 1 << 63  # subnormals
    numbers = bits.view(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    for notation in (repr, "{:.17g}".format, "{:.16e}".format, "{:.40e}".format, "{:.15g}".format, "{:.25f}".format):
        texts = [text for text in (notation(float(number)) for number in numbers) if math.isfinite(float(text))]
        assert (
            read_floats(texts, pa.float64()).view(np.uint64)
            == np.array([float(text) for text in texts]).view(np.uint64)
        ).all()


def decimal_text(number: Fraction) -> str:
    """All digits of a number whose denominator is a power of two."""
    power = number.denominator.bit_length() - 1
    digits = str(number.numerator * 5**power).zfill(power + 1)
    return digits[: len(digits) - power] + "." + (digits[len(digits) - power :] or "0")


@pytest.mark.parametrize(
    ("data_type", "float_", "word", "highest"),
    [(pa.float64(), np.float64, np.uint64, 0x7FEFFFFFFFFFFFFE), (pa.float32(), np.float32, np.uint32, 0x7F7FFFFE)],
    ids=["float64", "float32"],
)
def test_a_number_half_way_between_two_floats_goes_to_the_even_one(data_type, float_, word, highest):
    random_ = random.Random(3)
    texts, expected = [], []
    subnormal = 1 << (52 if word is np.uint64 else 23)
    for i in range(300):
        bits = random_.randrange(subnormal if i % 3 == 0 else highest)
        below, above = word(bits).view(float_), word(bits + 1).view(float_)
        text = decimal_text((Fraction(float(below)) + Fraction(float(above))) / 2)
        texts += [text, text + "0" * 20 + "1", text[:-1] + "49" if text.endswith("5") else text]
        even = below if bits % 2 == 0 else above
        expected += [even, above, below if text.endswith("5") else even]
    assert (read_floats(texts, data_type).view(word) == np.array(expected, float_).view(word)).all()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"not json", "no JSON"),
        (b"n", "no JSON"),
        (b"tru", "no JSON"),
        (b"null", "null"),
        (b"false", "a boolean"),
        (b"12", "a number"),
    ],
)
def test_a_line_that_is_no_object_is_called_what_it_is(line: bytes, found: str) -> None:
    _, (bad,) = JsonDecoder(pa.schema([("a", pa.int64())])).decode(pa.array([line]))
    assert bad.reason == f"expected an object, found {found} at byte 0"
