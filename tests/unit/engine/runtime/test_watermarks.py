"""Event time by partition: how far an input has come, and when a silent partition no longer holds it back."""

from sabot._cython.flow.channel import ACTIVE, IDLE, Watermark
from sabot.engine.operators.base import START_OF_TIME
from sabot.engine.runtime.tasks.watermarks import EmittedMarks, Watermarks

A, B = ("orders", 0), ("orders", 1)


class Time(Watermarks):
    """A source with one reader."""

    def __init__(self, lateness_ms: int = 0, idle_ms: int = 1000) -> None:
        super().__init__(lateness_ms, idle_ms)
        self.told = EmittedMarks(self)

    def progress(self, now_ms):
        return self.told.progress(now_ms)


def two_partitions(lateness_ms: int = 0, idle_ms: int = 1000) -> Time:
    marks = Time(lateness_ms, idle_ms)
    marks.know([A, B], 0)
    return marks


def test_the_watermark_is_the_least_of_the_partitions_less_the_lateness():
    marks = two_partitions(lateness_ms=5)
    marks.see(A, 100, 0)
    assert marks.progress(0) == []  # nothing is known of B
    marks.see(B, 40, 0)
    assert marks.progress(0) == [Watermark(35)]
    marks.see(B, 90, 1)
    assert marks.progress(1) == [Watermark(85)]
    assert marks.progress(1) == []


def test_it_never_goes_back():
    marks = two_partitions()
    marks.see(A, 100, 0)
    marks.see(B, 100, 0)
    assert marks.progress(0) == [Watermark(100)]
    marks.see(A, 50, 1)
    assert marks.progress(1) == []


def test_a_partition_without_rows_is_idle_after_a_while_and_no_longer_holds_the_others_back():
    marks = two_partitions(idle_ms=1000)
    marks.see(A, 100, 900)
    assert marks.progress(999) == []
    assert marks.progress(1000) == [Watermark(100)]
    marks.see(B, 70, 1001)  # late, and awake again
    assert marks.progress(1001) == []
    marks.see(B, 130, 1002)
    assert marks.progress(1002) == []  # A holds it at 100
    marks.see(A, 120, 1003)
    assert marks.progress(1003) == [Watermark(120)]


def test_after_a_pause_of_the_process_each_partition_has_its_whole_wait():
    marks = two_partitions(idle_ms=1000)
    marks.see(A, 100, 0)
    marks.see(B, 70, 0)
    marks.busy([B], 10)  # its reader was processing rows when the process was paused
    assert marks.progress(10) == [Watermark(70)]
    marks.resume(50_000, 99)  # a short pause counts as silence
    marks.resume(60_000, 100)
    marks.back([B], 60_050)
    marks.see(A, 9_000, 60_500)
    assert marks.progress(60_999) == []
    assert marks.progress(61_000) == [Watermark(9_000)]


def test_with_all_partitions_idle_the_input_is_idle_until_rows_come():
    marks = two_partitions(idle_ms=1000)
    marks.see(A, 100, 0)
    marks.see(B, 100, 0)
    assert marks.progress(0) == [Watermark(100)]
    assert marks.progress(1000) == [IDLE]
    assert marks.progress(2000) == []
    marks.see(A, 150, 2500)
    assert marks.progress(2500) == [ACTIVE]  # silence begins anew for B
    marks.see(A, 160, 3400)
    assert marks.progress(3499) == []
    assert marks.progress(3500) == [Watermark(160)]


def test_an_input_without_partitions_is_idle():
    assert Time().progress(0) == [IDLE]


def test_a_new_partition_begins_at_the_watermark():
    marks = two_partitions()
    marks.see(A, 100, 0)
    marks.see(B, 100, 0)
    marks.progress(0)
    marks.know([A, B, ("orders", 2)], 1)
    marks.see(A, 200, 1)
    marks.see(B, 200, 1)
    assert marks.progress(1) == []  # the new one stands at 100
    marks.see(("orders", 2), 180, 2)
    assert marks.progress(2) == [Watermark(180)]


def test_a_restored_input_goes_on_where_it_was():
    marks = two_partitions(lateness_ms=10)
    marks.see(A, 100, 0)
    marks.see(B, 80, 0)
    marks.progress(0)
    again = Time(lateness_ms=10)
    again.know([A, B], 5)
    again.told.watermark_ms = marks.told.watermark_ms
    again.restore(marks.told.watermark_ms, marks.facts([A, B]), marks.silent([A, B], 0), 5)
    assert again.progress(5) == []
    again.see(B, 90, 5)
    assert again.progress(5) == [Watermark(80)]


def test_behind_a_restart_a_partition_that_was_silent_for_longer_is_idle_first_and_windows_close():
    marks = two_partitions(idle_ms=2000)
    marks.see(B, 10, 0)
    marks.see(A, 100, 800)
    assert marks.progress(1000) == [Watermark(10)]
    again = Time(idle_ms=2000)
    again.told.watermark_ms = 10
    again.restore(10, marks.facts([A, B]), marks.silent([A, B], 1000), 50)
    again.know([A, B], 50)
    assert again.progress(3049) == []  # B was silent for 1000 of 2000 ms, A for 200
    assert again.progress(3050) == [Watermark(100)]
    assert again.progress(3849) == []
    assert again.progress(3850) == [IDLE]


def test_a_checkpoint_that_does_not_say_how_long_partitions_were_silent_is_taken_too():
    again = Time(idle_ms=1000)
    again.told.watermark_ms = 10
    again.restore(10, [[*A, 100], [*B, 10]], [], 5)
    again.know([A, B], 5)
    assert again.progress(1004) == []
    again.see(A, 110, 1004)
    assert again.progress(1005) == [Watermark(110)]


def test_a_partition_whose_rows_were_not_read_yet_is_not_idle():
    """Batches that took long to process made the others look silent, and their rows late. Found on a real broker."""
    marks = two_partitions(idle_ms=1000)
    marks.see(A, 100, 5000)
    marks.awake([B], 5000)
    assert marks.progress(5000) == []
    marks.awake([B], 5999)
    assert marks.progress(5999) == []


def test_after_a_silence_of_all_the_first_row_does_not_leave_the_others_behind():
    """After an outage longer than `idle`, whoever answered first pushed the watermark over the backlog of the others."""
    marks = two_partitions(idle_ms=1000)
    marks.see(A, 100, 0)
    marks.see(B, 100, 0)
    assert marks.progress(0) == [Watermark(100)]
    assert marks.progress(5000) == [IDLE]
    marks.see(A, 900, 5001)
    assert marks.progress(5001) == [ACTIVE]
    marks.see(B, 300, 5002)
    assert marks.progress(5002) == [Watermark(300)]


def test_a_reader_does_not_run_ahead_of_what_another_has_not_read():
    """Each reader had an event time of its own: after a silence the first one back left the backlog of the others behind."""
    source = two_partitions(idle_ms=1000)
    first, second = source.told, EmittedMarks(source)
    source.see(A, 100, 0)
    source.see(B, 100, 0)
    assert first.progress(0) == [Watermark(100)] == second.progress(0)
    assert first.progress(5000) == [IDLE] == second.progress(5000)
    source.see(A, 900, 5001)
    assert first.progress(5001) == [ACTIVE]
    assert second.progress(5002) == [ACTIVE]
    source.see(B, 300, 5003)
    assert first.progress(5003) == [Watermark(300)] == second.progress(5003)


def test_a_partition_that_has_ended_holds_nobody_back():
    source = two_partitions()
    source.see(A, 100, 0)
    source.end([B])
    assert source.progress(0) == [Watermark(100)]


def test_when_all_turn_idle_a_partition_that_never_had_rows_does_not_keep_the_last_windows_open():
    """Bursts shorter than `idle` on a topic with an unused partition: nothing ever came out."""
    marks = two_partitions(idle_ms=1000)
    marks.see(A, 500, 10)
    assert marks.progress(10) == []
    assert marks.progress(1010) == [Watermark(500), IDLE]
    marks.see(B, 900, 5000)
    assert marks.progress(5000) == [ACTIVE]
    assert marks.progress(6000) == [Watermark(900), IDLE]


def test_a_partition_turns_idle_though_its_reader_is_busy_with_the_rows_of_others():
    marks = two_partitions()
    marks.see(A, 100, 0)
    marks.see(B, 50, 0)
    for now_ms in range(0, 1000, 50):
        marks.back([A, B], now_ms)
        marks.see(A, 100 + now_ms, now_ms)
        marks.busy([A, B], now_ms)
        assert marks.progress(now_ms) == ([Watermark(50)] if now_ms == 0 else [])
    marks.back([A, B], 1000)
    assert marks.progress(1000) == [Watermark(1050)]


def test_a_partition_does_not_turn_idle_while_nobody_polls_it():
    marks = two_partitions()
    marks.see(A, 100, 0)
    marks.see(B, 50, 0)
    marks.busy([A, B], 400)
    assert marks.progress(99_000) == [Watermark(50)]
    marks.back([A, B], 99_400)  # 400 ms of silence before it, and 600 behind it
    marks.see(A, 200, 99_500)
    assert marks.progress(99_999) == []
    assert marks.progress(100_000) == [Watermark(200)]


def closing(greatest_ms: int) -> int:
    """The end of a window of 100 ms."""
    return greatest_ms - greatest_ms % 100 + 100


def test_with_all_partitions_idle_windows_close_where_that_was_asked():
    marks = Watermarks(5, 1000, closing)
    told = EmittedMarks(marks)
    marks.know([A, B], 0)
    marks.see(A, 130, 0)
    marks.see(B, 70, 100)
    assert told.progress(100) == [Watermark(65)]
    assert told.progress(1050) == []  # A alone is idle
    assert told.progress(1100) == [Watermark(200), IDLE]
    marks.see(A, 190, 2000)  # late
    assert told.progress(2000) == [ACTIVE]
    assert told.progress(3000) == [IDLE]
    marks.see(A, 260, 4000)
    marks.see(B, 210, 4000)
    assert told.progress(4000) == [ACTIVE, Watermark(205)]
    assert told.progress(5000) == [Watermark(300), IDLE]


def test_a_restart_closes_no_windows_that_no_row_has_come_for():
    """A partition that is found later begins at the watermark, which is no row's time."""
    before = Watermarks(0, 1000, closing)
    before.know([A], 0)
    before.see(A, 130, 0)
    assert before.read(1000) == (True, 200)
    before.know([B], 1000)
    after = Watermarks(0, 1000, closing)
    after.restore(200, before.facts([A, B]), before.silent([A, B], 1000), 5000, before.latest_ms)
    assert after.read(7000) == (True, 200)


def test_nothing_closes_before_a_row_has_come():
    marks = Watermarks(0, 1000, closing)
    marks.know([A], 0)
    assert marks.read(2000) == (True, START_OF_TIME)


def test_a_new_partition_of_which_no_row_was_good_may_be_busy():
    marks = two_partitions()
    marks.busy([A, B, ("orders", 2)], 0)
    marks.back([A, B, ("orders", 2)], 5000)
    assert marks.progress(5000) == []


def test_the_partition_that_is_furthest_behind_is_the_limit_of_those_that_are_aligned():
    marks = two_partitions()
    assert marks.beyond([A, B], 1000, unread=True) == (frozenset(), True)
    marks.see(A, 5000, 0)
    assert marks.least(0, unread=True) == marks.least(0, unread=False) == START_OF_TIME
    marks.see(B, 3000, 0)
    assert marks.least(0, unread=True) == 3000
    marks.unread([A, B], [A])
    assert (marks.least(0, unread=True), marks.least(0, unread=False)) == (5000, 3000)
    assert marks.beyond([A, B], 4000, unread=True) == (frozenset([A]), False)
    assert marks.beyond([A, B], 4000, unread=False) == (frozenset([A]), True)
    assert marks.beyond([A, B], 2000, unread=False) == (frozenset([A, B]), False)
    marks.see(A, 6000, 900)
    assert marks.least(1000, unread=False) == 6000, "B is idle"
    marks.end([A])
    assert marks.least(2000, unread=False) is None
