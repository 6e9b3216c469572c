"""The events of Nexmark: of 50, one is a person, 3 are auctions, 46 are bids. What an event is, its number and the seed say.

    Generator(seed=1).rows("bid", 0, 46, ["auction", "price"])    # the first 46 bids, which are events 4 to 49

Ids, times and which ids are hot follow from the number alone, as in the generators of Apache Beam and Flink, whose rules and parameters
these are (P. Tucker, K. Tufte, V. Papadimos, D. Maier: NEXMark, 2004). Differences: `extra` of a bid is one of 65,536 texts, and all texts
are pieces of one pool of random characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .draws import Ints, Random, TextPool

EPOCH = 50  # events
PEOPLE, AUCTIONS, BIDS = 1, 3, 46  # of an epoch, in this order
FIRST_PERSON = FIRST_AUCTION = 1000
FIRST_CATEGORY, CATEGORIES = 10, 5
PERSON_LEAD = AUCTION_LEAD = 10  # how many ids are used before they are there
HOT = 100  # one id in so many is a hot one
CHANNELS = 10_000
HOT_CHANNELS = ("Google", "Facebook", "Baidu", "Apple")
BID_EXTRAS = 1 << 16

STATES = pa.array(["AZ", "CA", "ID", "OR", "WA", "WY"])
CITIES = pa.array(
    ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"]
)
FIRST_NAMES = pa.array(["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"])
LAST_NAMES = pa.array(["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"])
DIGITS = pa.array([f"{number:04}" for number in range(10_000)])

_COLUMNS = {
    "person": "id name emailAddress creditCard city state dateTime extra",
    "auction": "id itemName description initialBid reserve dateTime expires seller category extra",
    "bid": "auction bidder price channel url dateTime extra",
}
_NUMBERS = ["id", "initialBid", "reserve", "seller", "category", "auction", "bidder", "price"]
_TYPES = dict.fromkeys(_NUMBERS, pa.int64())
_TYPES |= dict.fromkeys(["dateTime", "expires"], pa.timestamp("ms"))
SCHEMAS = {
    kind: pa.schema([(name, _TYPES.get(name, pa.string())) for name in names.split()])
    for kind, names in _COLUMNS.items()
}
PER_EPOCH = {"person": (0, PEOPLE), "auction": (PEOPLE, AUCTIONS), "bid": (PEOPLE + AUCTIONS, BIDS)}


@dataclass(frozen=True)
class Config:
    """The parameters that the field calls standard. Sizes in bytes, in the mean; ratios: of so many all but one are hot."""

    rate: int = 10_000  # events a second of event time
    start_ms: int = 1_436_918_400_000  # 2015-07-15T00:00:00Z
    active_people: int = 1000
    auctions_in_flight: int = 100
    hot_auction_ratio: int = 2
    hot_bidder_ratio: int = 4
    hot_seller_ratio: int = 4
    person_bytes: int = 200
    auction_bytes: int = 500
    bid_bytes: int = 100


def count_rows(kind: str, events: int) -> int:
    """The number of rows of this kind among the first `events` events."""
    first, each = PER_EPOCH[kind]
    return events // EPOCH * each + min(max(events % EPOCH - first, 0), each)


class Generator:
    """All events of a seed. Rows of a kind are counted from 0, each kind on its own."""

    def __init__(self, seed: int = 0, config: Config | None = None) -> None:
        self.seed = seed
        self.config = config or Config()

    def rows(self, kind: str, first: int, end: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Rows `first` to `end` - 1, of which only these columns are made."""
        return self.rows_at(kind, np.arange(first, end), columns)

    def rows_at(self, kind: str, numbers: Ints, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """The rows of these numbers, of which only these columns are made."""
        schema = SCHEMAS[kind]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        made = _KINDS[kind](self, numbers)
        arrays = [pa.array(getattr(made, name), type=schema.field(name).type) for name in schema.names]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


class _Rows:
    """Rows of one kind: a property for each column, and what several of them need."""

    def __init__(self, kind: str, generator: Generator, numbers: Ints) -> None:
        first, each = PER_EPOCH[kind]
        self.config = generator.config
        self.epoch = numbers // each
        self.event = self.epoch * EPOCH + first + numbers % each
        self.random = Random(generator.seed, self.event)
        self.pools = _pools(generator.seed)

    @cached_property
    def time_ms(self) -> Ints:
        return self._time_of(self.event)

    @property
    def dateTime(self) -> Ints:
        return self.time_ms

    def _time_of(self, event: Ints) -> Ints:
        return self.config.start_ms + event * 1000 // self.config.rate

    def _price(self, purpose: str) -> Ints:
        """From 1 to 1,000,000, in cents, each order of magnitude of equal chance."""
        return np.floor(np.exp(self.random.fraction(purpose) * (6 * np.log(10))) * 100 + 0.5).astype(np.int64)

    def _person(self, purpose: str) -> Ints:
        """One of the people who are active, or who will be next."""
        people = self.epoch + 1
        active = np.minimum(people, self.config.active_people)
        return people - active + self.random.below(active + PERSON_LEAD, purpose) + FIRST_PERSON

    def _hot(self, ratio: int, purpose: str) -> np.ndarray:
        return self.random.below(ratio, purpose) > 0

    def _extra(self, others: Ints, mean: int) -> pa.StringArray:
        """As many letters as make the row `mean` bytes long with its other columns, a fifth of them more or less."""
        wanted = np.maximum(mean - others, 0)
        spread = np.floor(wanted * 0.2 + 0.5).astype(np.int64)
        lengths = wanted - spread + self.random.below(np.maximum(2 * spread, 1), "extra n")
        return self.pools.letters.texts(self.random, lengths, "extra")

    def _words(self, longest: int, purpose: str) -> pa.StringArray:
        """A text of 3 to longest - 1 characters, less spaces at its ends."""
        lengths = self.random.below(longest - 3, purpose + " n") + 3
        return pc.utf8_trim_whitespace(self.pools.words.texts(self.random, lengths, purpose))

    def _one_of(self, values: pa.Array, purpose: str) -> pa.Array:
        return values.take(pa.array(self.random.below(len(values), purpose)))


class _People(_Rows):
    def __init__(self, generator: Generator, numbers: Ints) -> None:
        super().__init__("person", generator, numbers)

    @property
    def id(self) -> Ints:
        return self.epoch + FIRST_PERSON

    @cached_property
    def name(self) -> pa.Array:
        return pc.binary_join_element_wise(self._one_of(FIRST_NAMES, "first"), self._one_of(LAST_NAMES, "last"), " ")

    @cached_property
    def emailAddress(self) -> pa.Array:
        return pc.binary_join_element_wise(self._words(7, "mail"), "@", self._words(5, "domain"), ".com", "")

    @cached_property
    def creditCard(self) -> pa.Array:
        return pc.binary_join_element_wise(*(self._one_of(DIGITS, f"card {part}") for part in range(4)), " ")

    @cached_property
    def city(self) -> pa.Array:
        return self._one_of(CITIES, "city")

    @cached_property
    def state(self) -> pa.Array:
        return self._one_of(STATES, "state")

    @property
    def extra(self) -> pa.Array:
        others = (self.name, self.emailAddress, self.creditCard, self.city, self.state)
        return self._extra(8 + sum(_lengths(column) for column in others), self.config.person_bytes)


class _Auctions(_Rows):
    def __init__(self, generator: Generator, numbers: Ints) -> None:
        super().__init__("auction", generator, numbers)
        self.id = numbers + FIRST_AUCTION

    @cached_property
    def itemName(self) -> pa.Array:
        return self._words(20, "item")

    @cached_property
    def description(self) -> pa.Array:
        return self._words(100, "text")

    @cached_property
    def initialBid(self) -> Ints:
        return self._price("initial")

    @property
    def reserve(self) -> Ints:
        return self.initialBid + self._price("reserve")

    @property
    def expires(self) -> Ints:
        """Within twice the time in which as many auctions are opened as are in flight."""
        ahead = self.config.auctions_in_flight * EPOCH // AUCTIONS
        horizon = self._time_of(self.event + ahead) - self.time_ms
        return self.time_ms + 1 + self.random.below(np.maximum(2 * horizon, 1), "expires")

    @property
    def seller(self) -> Ints:
        hot = self.epoch // HOT * HOT + FIRST_PERSON
        return np.where(self._hot(self.config.hot_seller_ratio, "seller ?"), hot, self._person("seller"))

    @property
    def category(self) -> Ints:
        return self.random.below(CATEGORIES, "category") + FIRST_CATEGORY

    @property
    def extra(self) -> pa.Array:
        others = 8 + _lengths(self.itemName) + _lengths(self.description) + 5 * 8
        return self._extra(others, self.config.auction_bytes)


class _Bids(_Rows):
    def __init__(self, generator: Generator, numbers: Ints) -> None:
        super().__init__("bid", generator, numbers)

    @property
    def auction(self) -> Ints:
        """The hot one, or one of those that are in flight, or will be next."""
        last = self.epoch * AUCTIONS + AUCTIONS - 1
        first = np.maximum(last - self.config.auctions_in_flight, 0)
        other = first + self.random.below(last - first + 1 + AUCTION_LEAD, "auction")
        hot = last // HOT * HOT
        return np.where(self._hot(self.config.hot_auction_ratio, "auction?"), hot, other) + FIRST_AUCTION

    @property
    def bidder(self) -> Ints:
        """The hot one is the second of its hundred: the first is the hot seller."""
        hot = self.epoch // HOT * HOT + 1 + FIRST_PERSON
        return np.where(self._hot(self.config.hot_bidder_ratio, "bidder ?"), hot, self._person("bidder"))

    @property
    def price(self) -> Ints:
        return self._price("price")

    @cached_property
    def _channel_number(self) -> pa.Array:
        hot = self.random.below(len(HOT_CHANNELS), "hot chan")
        other = len(HOT_CHANNELS) + self.random.below(CHANNELS, "channel")
        return pa.array(np.where(self._hot(2, "channel?"), hot, other))

    @property
    def channel(self) -> pa.Array:
        return self.pools.channels.take(self._channel_number)

    @property
    def url(self) -> pa.Array:
        return self.pools.urls.take(self._channel_number)

    @property
    def extra(self) -> pa.Array:
        return self._one_of(self.pools.bid_extras(self.config.bid_bytes), "extra")


_KINDS = {"person": _People, "auction": _Auctions, "bid": _Bids}


class _Pools:
    """What all rows of a seed take their texts from."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.letters = TextPool(seed)
        self.words = TextPool(seed, " ")
        names = [*HOT_CHANNELS, *(f"channel-{number}" for number in range(CHANNELS))]
        self.channels = pa.array(names)
        self.urls = self._make_urls(len(names))

    def _make_urls(self, count: int) -> pa.Array:
        """Four directories' names at random; nine in ten of the channels that are not hot have their id behind them."""
        random, pool = Random(self.seed, np.arange(count)), TextPool(self.seed, "_")
        parts = [pool.texts(random, random.below(2, f"len {part}") + 3, f"part {part}") for part in range(3)]
        ids = [f"&channel_id={_reversed(number)}" for number in range(count - len(HOT_CHANNELS))]
        named = random.below(10, "id ?")[len(HOT_CHANNELS) :] > 0
        ends = [""] * len(HOT_CHANNELS) + [end if has else "" for end, has in zip(ids, named, strict=True)]
        pages = pc.binary_join_element_wise("https://www.nexmark.com", *parts, "item.htm?query=1", "/")
        return pc.binary_join_element_wise(pages, pa.array(ends), "")

    @cache  # noqa: B019 - pools are kept for good
    def bid_extras(self, mean: int) -> pa.Array:
        """The texts behind bids: the length hangs on nothing else of the bid, so they can be made beforehand."""
        numbers = np.arange(BID_EXTRAS)
        wanted = max(mean - 4 * 8, 0)
        spread = int(wanted * 0.2 + 0.5)
        random = Random(self.seed, numbers)
        return self.letters.texts(random, wanted - spread + random.below(max(2 * spread, 1), "extra n"), "extra")


@cache
def _pools(seed: int) -> _Pools:
    return _Pools(seed)


def _lengths(texts: pa.Array) -> Ints:
    lengths: Ints = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _reversed(number: int) -> int:
    """The 32 bits of the number in reverse order, as a signed integer without its sign."""
    word = int(f"{number:032b}"[::-1], 2)
    return 2**32 - word if word >= 2**31 else word
