"""What is to be delivered after a start: the table of decision 007 row by row, and a model of an app, its receiver and its
checkpoints, in which no row may be lost or come twice unless the user has said so.
"""

from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import DeliveryConflict, Token, UserError
from sabot.api.settings import Redeliver
from sabot.cli.running import guarded
from sabot.engine.checkpoint.manifest import StoredPart, StoredTrack
from sabot.engine.delivery.tokens import Opening, after, first_seq, opening

CHOICES = get_args(Redeliver)
US, THEM = "a" * 32, "b" * 32
GENERATION = 3  # of the run that opens; what is stored was given out by run 2
BASE = 2 * 2**34


def seq(n: int) -> int:
    """Part n of the run before."""
    return BASE + n


def track(*, given: int, delivered: int, finished: bool = False) -> StoredTrack:
    """Parts `delivered + 1` to `given` are pending."""
    parts = [StoredPart(seq(n), f"stages/out/{seq(n)}.arrow", 10) for n in range(delivered + 1, given + 1)]
    return StoredTrack(
        "out", seq(given) if given else 0, seq(delivered) if delivered else 0, pending=parts, finished=finished
    )


def opened(
    stored: StoredTrack | None,
    token: Token | None,
    *,
    choice: str | None = None,
    newest: bool = True,
    fresh: bool = False,
    keeps_token: bool = True,
    generation: int = GENERATION,
) -> Opening:
    return opening(
        "out",
        stored,
        token,
        keeps_token=keeps_token,
        incarnation=US,
        generation=generation,
        newest=newest,
        choice=choice,
        fresh=fresh,
    )


def delivered_parts(stored: StoredTrack | None, found: Opening) -> list[int]:
    """Which parts of the run before are delivered under their own number."""
    if stored is None or found.renumber:
        return []
    return [part.seq - BASE for part in stored.pending if part.seq > found.delivered]


# -- numbers --------------------------------------------------------------------------------------------------------------


def test_a_number_is_the_generation_and_a_count() -> None:
    assert first_seq(0) == 0
    assert first_seq(1) == 2**34
    assert first_seq(7) == 7 * 2**34


@given(st.integers(0, 2**20), st.integers(0, 2**34 - 1))
def test_a_number_above_another_is_the_first_of_a_later_run(generation: int, n: int) -> None:
    number = generation * 2**34 + n
    assert after(number) >= number
    assert after(number) % 2**34 == 0, "it is the number below the first one of a run"
    assert after(number) >= first_seq(generation + (n > 0))


def test_numbers_of_different_runs_never_meet() -> None:
    assert first_seq(4) + 2**34 - 1 < first_seq(5) + 1


# -- the table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [None, track(given=0, delivered=0)])
def test_a_first_start_begins_before_the_first_number_of_its_generation(stored: StoredTrack | None) -> None:
    found = opened(stored, None)
    assert found.delivered < first_seq(GENERATION) + 1
    assert not found.renumber
    assert found.above >= first_seq(GENERATION)


def test_a_first_start_that_died_after_it_had_settled_is_a_first_start() -> None:
    """No checkpoint was taken, so the next start makes an incarnation of its own."""
    found = opened(None, Token(0, THEM))
    assert found.above >= first_seq(GENERATION)


def test_a_token_that_is_lost_is_set_again_where_nothing_waits_and_the_user_is_told() -> None:
    found = opened(track(given=4, delivered=4), None)
    assert found.delivered == seq(4)
    assert "token" in found.note
    assert found.above >= first_seq(GENERATION)


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("choice", [None, "repeat", "skip"])
def test_a_receiver_that_certainly_has_nothing_is_given_all_that_waits_and_nobody_is_asked(
    newest: bool, choice: str | None
) -> None:
    """Its topic is made with the first part, and the process was killed before that."""
    stored = track(given=4, delivered=0)
    found = opened(stored, Token(0, US, empty=True), newest=newest, choice=choice)
    assert (delivered_parts(stored, found), found.note) == ([1, 2, 3, 4], "")


def test_who_deleted_what_was_delivered_is_told_and_gets_what_waits() -> None:
    stored = track(given=4, delivered=2)
    found = opened(stored, Token(0, US, empty=True))
    assert delivered_parts(stored, found) == [3, 4]
    assert "was it deleted?" in found.note


def test_a_token_that_is_missing_is_no_news_where_nothing_was_ever_delivered() -> None:
    assert opened(StoredTrack("out", seq(0)), None).note == ""


@pytest.mark.parametrize("n", [2, 3, 4])
def test_parts_above_the_token_are_delivered_in_order(n: int) -> None:
    stored = track(given=4, delivered=2)
    found = opened(stored, Token(seq(n), US))
    assert delivered_parts(stored, found) == list(range(n + 1, 5))
    assert found.above >= first_seq(GENERATION) > seq(4)


CONFLICTS = {
    "the token is missing while parts wait": (track(given=4, delivered=2), None, True),
    "the token is missing and the checkpoint is not the newest": (track(given=4, delivered=4), None, False),
    "the token is below what is known to be delivered": (track(given=4, delivered=3), Token(seq(2), US), True),
    "the token is of another life": (track(given=4, delivered=2), Token(seq(3), THEM), True),
    "the token is of another life and nothing waits": (track(given=4, delivered=4), Token(seq(4), THEM), True),
    "the token is of another life, the state directory deleted": (None, Token(seq(3), THEM), True),
    "the token has no incarnation": (track(given=4, delivered=2), Token(seq(3), ""), True),
    "the token is above all that was given out": (track(given=4, delivered=2), Token(seq(5), US), True),
    "the savepoint is older than what was delivered": (track(given=4, delivered=2), Token(seq(9), US), False),
    "the track is not in the savepoint and its token is ours": (None, Token(seq(9), US), False),
}


@pytest.mark.parametrize("story", CONFLICTS)
def test_a_disagreement_stops_the_start_and_spells_out_the_choice(story: str) -> None:
    stored, token, newest = CONFLICTS[story]
    with pytest.raises(DeliveryConflict) as caught:
        opened(stored, token, newest=newest)
    assert "out" in caught.value.message, "it says which sink"
    said = str(caught.value)
    for choice in CHOICES:
        assert choice in said, "the ways on are spelled out"
    assert caught.value.hint


@pytest.mark.parametrize("story", CONFLICTS)
def test_repeat_gives_all_that_waits_new_numbers_above_the_token(story: str) -> None:
    stored, token, newest = CONFLICTS[story]
    found = opened(stored, token, newest=newest, choice="repeat")
    assert found.renumber or not (stored and stored.pending)
    assert found.above >= (token.seq if token else 0)
    assert found.above >= (stored.given if stored else 0)
    assert found.above >= first_seq(GENERATION)
    assert found.note, "the user is told what is done"


@pytest.mark.parametrize("story", CONFLICTS)
def test_skip_drops_saved_parts_up_to_the_token_and_delivers_the_others(story: str) -> None:
    stored, token, newest = CONFLICTS[story]
    found = opened(stored, token, newest=newest, choice="skip")
    assert found.above >= (token.seq if token else 0)
    assert found.above >= first_seq(GENERATION)
    if token is not None and stored is not None and not found.renumber:
        assert all(seq(n) > token.seq for n in delivered_parts(stored, found))
    assert found.note


@pytest.mark.parametrize("story", [story for story, (stored, _, _) in CONFLICTS.items() if stored and stored.pending])
def test_skip_says_how_many_parts_it_drops(story: str) -> None:
    """(Finding 2.)"""
    stored, token, newest = CONFLICTS[story]
    assert stored is not None
    found = opened(stored, token, newest=newest, choice="skip")
    dropped = len(stored.pending) - len(delivered_parts(stored, found))
    assert f"{dropped} saved part" in found.note


def test_skip_where_the_token_is_lost_drops_what_waited() -> None:
    """Nobody knows which of them got through, and the user does not want any twice."""
    stored = track(given=4, delivered=2)
    found = opened(stored, None, choice="skip")
    assert delivered_parts(stored, found) == []
    assert not found.renumber


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_choice_changes_nothing_where_there_is_no_disagreement(choice: str, n: int) -> None:
    stored = track(given=4, delivered=2)
    found = opened(stored, Token(seq(n), US), choice=choice)
    assert delivered_parts(stored, found) == list(range(n + 1, 5))


@pytest.mark.parametrize(
    "token", [None, Token(0, THEM), Token(seq(7), THEM), Token(first_seq(GENERATION + 5) + 3, THEM)]
)
def test_who_starts_afresh_is_not_asked_and_numbers_above_the_old_token(token: Token | None) -> None:
    found = opened(None, token, fresh=True)
    assert found.delivered == 0
    assert found.above >= (token.seq if token else 0), "or a receiver would take new parts for old ones"
    assert found.above >= first_seq(GENERATION)


def test_numbers_are_above_all_that_was_given_out_where_the_generations_begin_anew() -> None:
    """A savepoint that is started from in an empty directory: the claims there know nothing of earlier runs."""
    stored = track(given=4, delivered=2)
    elsewhere: dict[str, Any] = {"newest": False, "generation": 1}
    assert opened(stored, Token(seq(4), US), **elsewhere).above >= seq(4)
    far = first_seq(40) + 3
    for choice in CHOICES:
        assert opened(stored, Token(far, US), choice=choice, **elsewhere).above >= far
        assert opened(stored, None, choice=choice, **elsewhere).above >= seq(4)
        assert opened(None, Token(far, THEM), choice=choice, generation=1).above >= far
    assert opened(None, Token(far, THEM), fresh=True, generation=1).above >= far


# -- sinks that keep no token ---------------------------------------------------------------------------------------------


def test_a_sink_without_a_token_is_given_all_parts_again_that_may_not_have_arrived() -> None:
    stored = track(given=4, delivered=2)
    found = opened(stored, None, keeps_token=False)
    assert delivered_parts(stored, found) == [3, 4], "the same numbers: it knows them"


@pytest.mark.parametrize("stored", [None, track(given=0, delivered=0), track(given=4, delivered=4)])
def test_a_sink_without_a_token_starts_where_nothing_waits(stored: StoredTrack | None) -> None:
    found = opened(stored, None, keeps_token=False)
    assert found.above >= first_seq(GENERATION) > seq(4)
    assert delivered_parts(stored, found) == []


def test_a_savepoint_for_a_sink_without_a_token_is_a_choice() -> None:
    """Nobody can say what came after the savepoint, so going on could repeat it. (Finding 1.)"""
    for stored in (track(given=4, delivered=2), track(given=4, delivered=4)):
        with pytest.raises(DeliveryConflict):
            opened(stored, None, keeps_token=False, newest=False)
        for choice in CHOICES:
            opened(stored, None, keeps_token=False, newest=False, choice=choice)


def test_a_choice_is_said_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Four ways out stood in one line of 600 characters."""
    with pytest.raises(DeliveryConflict) as caught:
        opened(track(given=4, delivered=4), None, keeps_token=False, newest=False)

    def fail() -> None:
        raise caught.value

    assert guarded(fail, debug=False) == 1
    first, *choices = capsys.readouterr().err.splitlines()
    assert first.startswith("sabot: ")
    assert first.endswith("(choose one:")
    assert [line.split()[:2] for line in choices] == [
        ["--redeliver", "repeat"],
        ["--redeliver", "skip:"],
        ["start", "from"],
    ]
    assert all(line.startswith("  ") for line in choices)


def test_an_unknown_choice_is_refused_by_the_app() -> None:
    from sabot import App

    with pytest.raises(UserError, match="repeat"):
        App("choices").configure(redeliver="maybe")


# -- a model of the whole -------------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """Takes a part and its token in one step; one that is at or below the token it takes for known."""

    token: Token | None = None
    rows: list[int] = field(default_factory=list)

    def deliver(self, number: int, incarnation: str, rows: list[int]) -> None:
        if self.token is None or number > self.token.seq:
            self.rows += rows
            self.token = Token(number, incarnation)


@dataclass(frozen=True)
class Checkpoint:
    """Where the source was, and what was pending; `rows` by seq."""

    position: int
    track: StoredTrack
    rows: dict[int, list[int]]
    incarnation: str


class AppModel:
    """Reads 0, 1, 2, … and writes them through one track. A part holds the rows between two cuts."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.newest: Checkpoint | None = None
        self.savepoint: Checkpoint | None = None
        self.generation = 0
        self.lives = 0
        self.start(None, choice=None)

    def start(self, at: Checkpoint | None, *, choice: str | None, fresh: bool = False) -> None:
        if at is None:
            self.lives += 1
        incarnation = at.incarnation if at is not None else f"{self.lives:032}"
        generation = self.generation + 1
        token = self.receiver.token
        found = opening(
            "out",
            at.track if at is not None else None,
            token,
            keeps_token=True,
            incarnation=incarnation,
            generation=generation,
            newest=at is self.newest,
            choice=choice,
            fresh=fresh,
        )
        self.incarnation = incarnation
        self.generation = max(generation, found.above >> 34)
        self.position = at.position if at is not None else 0
        self.last = found.above
        self.given = at.track.given if at is not None else 0
        self.delivered = found.delivered
        self.pending: dict[int, list[int]] = {}
        self.receiver.token = Token(found.delivered, incarnation)
        for number, rows in (at.rows if at is not None else {}).items():
            if found.renumber:
                self.seal(rows)
            elif number > found.delivered:
                self.pending[number] = rows
        self.open: list[int] = []
        if at is None:
            self.newest = None
        if found.renumber:
            self.checkpoint()  # new numbers are known before they are used

    def seal(self, rows: list[int]) -> None:
        self.last += 1
        self.given = self.last
        self.pending[self.last] = rows

    def read(self, count: int) -> None:
        self.open += range(self.position, self.position + count)
        self.position += count

    def checkpoint(self) -> None:
        if self.open:
            self.seal(self.open)
            self.open = []
        parts = [StoredPart(number, f"stages/out/{number}.arrow", len(rows)) for number, rows in self.pending.items()]
        stored = StoredTrack("out", max(self.given, self.delivered), self.delivered, parts)
        self.newest = Checkpoint(self.position, stored, dict(self.pending), self.incarnation)

    def deliver(self, parts: int, *, noted: bool = True) -> None:
        """Only what the newest checkpoint lists. Not noted: the process dies between the delivery and the note."""
        listed = {part.seq for part in self.newest.track.pending} if self.newest else set()
        for number in [number for number in self.pending if number in listed][:parts]:
            self.receiver.deliver(number, self.incarnation, self.pending[number])
            if noted:
                del self.pending[number]
                self.delivered = number

    def finish(self) -> None:
        self.checkpoint()
        self.deliver(len(self.pending))


STEPS = st.lists(
    st.sampled_from(["read", "checkpoint", "deliver one", "deliver", "crash", "crash delivering", "savepoint"]),
    max_size=30,
)


def played(model: AppModel, steps: list[str]) -> AppModel:
    for what in steps:
        if what == "read":
            model.read(3)
        elif what == "checkpoint":
            model.checkpoint()
        elif what.startswith("deliver"):
            model.deliver(1 if what.endswith("one") else 100)
        elif what == "savepoint":
            model.checkpoint()
            model.savepoint = model.newest
        else:
            if what.endswith("delivering"):
                model.deliver(2, noted=False)
            model.start(model.newest, choice=None)
    return model


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_crashes_alone_neither_lose_nor_repeat_a_row_nor_ask_anybody(steps: list[str]) -> None:
    receiver = Receiver()
    model = played(AppModel(receiver), steps)
    model.finish()
    assert receiver.rows == list(range(model.position))


@settings(max_examples=80, deadline=None)
@given(STEPS, STEPS, st.sampled_from([None, *CHOICES]), st.booleans())
def test_a_savepoint_repeats_or_loses_output_only_if_the_user_says_so(
    before: list[str], behind: list[str], choice: str | None, elsewhere: bool
) -> None:
    receiver = Receiver()
    model = played(AppModel(receiver), before)
    model.checkpoint()
    saved = model.newest
    assert saved is not None
    played(model, behind)
    arrived = list(receiver.rows)
    if elsewhere:
        model.generation = 0  # in an empty directory, which knows of no claim
    try:
        model.start(replace(saved), choice=choice)
    except DeliveryConflict:
        assert choice is None
        assert receiver.rows == arrived, "nothing was done"
        return
    model.read(1)
    model.finish()
    if choice is None:
        assert receiver.rows == list(range(model.position))
    elif choice == "repeat":
        assert set(receiver.rows) == set(range(max(model.position, max(arrived, default=-1) + 1))), "nothing is lost"
    assert receiver.rows[: len(arrived)] == arrived


@settings(max_examples=80, deadline=None)
@given(STEPS, st.sampled_from([None, *CHOICES]))
def test_a_lost_token_never_repeats_or_loses_by_itself(steps: list[str], choice: str | None) -> None:
    receiver = Receiver()
    model = played(AppModel(receiver), steps)
    receiver.token = None
    arrived = list(receiver.rows)
    began_anew = model.newest is None
    try:
        model.start(model.newest, choice=choice)
    except DeliveryConflict:
        assert choice is None
        return
    model.finish()
    if began_anew:  # nothing had been delivered, because nothing is before the first checkpoint
        assert not arrived
    if choice is None:
        assert receiver.rows == list(range(model.position))
    elif choice == "repeat":
        assert set(receiver.rows) == set(range(model.position)), "nothing is lost"
    else:
        assert len(receiver.rows) == len(set(receiver.rows)), "nothing comes twice"


@settings(max_examples=80, deadline=None)
@given(STEPS, STEPS, st.booleans())
def test_a_life_that_began_anew_delivers_all_of_it_or_stops(before: list[str], behind: list[str], fresh: bool) -> None:
    """The state directory was deleted, or the user has said --fresh."""
    receiver = Receiver()
    model = played(AppModel(receiver), before)
    arrived = list(receiver.rows)
    if not fresh:
        model.generation = 0  # the claims went with the directory
    try:
        model.start(None, choice=None, fresh=fresh)
    except DeliveryConflict:
        assert not fresh
        assert arrived, "nothing had come out of it, so nothing could be repeated"
        return
    played(model, behind)
    model.finish()
    assert receiver.rows[len(arrived) :] == list(range(model.position))
    assert fresh or not arrived
