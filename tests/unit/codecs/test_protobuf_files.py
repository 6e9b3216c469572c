"""Where a message stands in a file of a schema registry, beside the descriptors that protobuf's own library makes."""

from base64 import b64encode

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from sabot.codecs.protobuf.files import places_of
from sabot.errors import UserError

TEXT = """
syntax = "proto2"; // message Commented { }
package shop.v1; /* message
Commented { } */
import "a{b.proto";
option (custom).text = "} message Quoted {";
enum Kind { message = 0; map = 1; }
message First {
  reserved 4 to 6; extensions 100 to max;
  optional string message = 1 [default = 'message Quoted {'];
  map<string, First> all = 2;
  message Inner { message Deep {} }
  oneof one { group Result = 3 { message InGroup {} } First other = 7; }
  enum Level { LOW = 0; }
}
message Second { optional group G = 1 { required int32 n = 1; } }
service Api { rpc Get (First) returns (Second) { option deadline = 1; } }
extend First { optional group Late = 100 { } }
message Third{}
"""


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("First", {(0,)}),
        ("Second", {(1,)}),
        ("Third", {(3,)}),  # behind the group Late, which is a message of the file
        ("First.Inner", {(0, 0), (0, 1)}),  # without the entry of its map, as Java counts, and with it
        ("First.Inner.Deep", {(0, 0, 0), (0, 1, 0)}),
        ("First.Result", {(0, 1), (0, 2)}),
        ("First.Result.InGroup", {(0, 1, 0), (0, 2, 0)}),
        ("Second.G", {(1, 0)}),
        ("Commented", set()),
        ("Quoted", set()),
        ("Kind", set()),
    ],
)
def test_a_message_is_found_in_the_text_of_a_file(name: str, places: set[tuple[int, ...]]) -> None:
    assert places_of(TEXT, f"shop.v1.{name}") == places
    assert places_of(TEXT, name) == set()


def test_a_message_is_found_in_a_serialized_file_too() -> None:
    entry = DescriptorProto(name="AllEntry")
    entry.options.map_entry = True
    first = DescriptorProto(name="First", nested_type=[entry, DescriptorProto(name="Inner")])
    file = FileDescriptorProto(name="f.proto", message_type=[DescriptorProto(name="Zero"), first])
    text = b64encode(file.SerializeToString()).decode()
    assert places_of(text, "First") == {(1,)}
    assert places_of(text, "First.Inner") == {(1, 0), (1, 1)}
    assert places_of(text, "Inner") == set()


@pytest.mark.parametrize(
    "text", ["}", "message A { } }", b64encode(b"\xff\xff\xff").decode(), "message A { " * 5000 + "}" * 5000]
)
def test_what_is_no_file_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"its braces do not match|not a Protobuf file|nested deeper than 100"):
        places_of(text, "A")


@pytest.mark.parametrize("begin", ["/* ", "'\\", '"\\', "//", '"'], ids=repr)
def test_what_does_not_end_is_read_once(begin: str) -> None:
    """With the square of the time this took an hour, in the thread that reads the topic."""
    assert places_of("message First { } " + begin * 300_000, "First") == {(0,)}
