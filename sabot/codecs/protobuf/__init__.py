"""Protobuf: the decoding and encoding of payloads, without an object per record.

| in the .proto file | column |
|---|---|
| numbers, `bool`, `string`, `bytes` | of the same type |
| an enum | string: the name. A number without a name is text of digits; in a closed enum (proto2) such a value is skipped |
| a message, a group | struct |
| `repeated`, `map` | list, map: empty if the field is missing. Of two pairs with one key the last counts |
| `google.protobuf.Timestamp`, `Duration` | timestamp("us", "UTC"), duration("us"); digits beyond microseconds are dropped |
| `google.protobuf.StringValue` and so on | of the type of the value |

A missing field is null if Protobuf tells absent from default: `optional`, members of a oneof, messages, all of proto2.
Any other missing field is the default: 0, "", the first name of an enum. Defaults that a proto2 file gives are not used.
Encoding refuses a null in a field that cannot be absent. Extensions and unknown fields are skipped.
"""

from sabot.codecs.protobuf.codec import ProtobufCodec
from sabot.codecs.protobuf.encoder import ProtobufEncoder
from sabot.codecs.protobuf.fields import arrow_schema, descriptor_of

__all__ = ["ProtobufCodec", "ProtobufEncoder", "arrow_schema", "descriptor_of"]
