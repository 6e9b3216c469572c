"""Jobs of a session as their kernel writes them: with what they have recalled, and the turn in their END entry."""

from collections.abc import Iterator

from sabot.agents.session_turns import Recalled, SessionId, Turn, recall
from sabot.jobs.values import pack
from sabot.journal import JournalReader
from sabot.journal.entries import Begin, EffectResult, End, Entry, Intent

SESSION = SessionId("k.desk", "shop", "ann", "c-1")


def begun(job: str, at_ms: int, recalled: Recalled | None) -> list[Entry]:
    """The entries of a job that runs. `recalled`: None for a job of a version that recalled nothing."""
    begin = Begin(job, at_ms, SESSION.agent, scope=SESSION.scope, principal=SESSION.principal, session=SESSION.session)
    if recalled is None:
        return [begin]
    said = EffectResult(job, at_ms, 1, body=pack(recalled, "a test"))
    return [begin, Intent(job, at_ms, 1, "recall", "conversation"), said]


def says(job: str, at_ms: int, turn: Turn, labels: tuple[str, ...] = ()) -> End:
    return End(job, at_ms, "succeeded", body=pack({"content": "", "turn": turn}, "a test"), labels=labels)


class CountedReader:
    """A reader that notes of which jobs `recall` has read the entries."""

    def __init__(self, reader: JournalReader) -> None:
        self._reader, self.read_jobs = reader, list[str]()
        self.logged, self.load = reader.logged, reader.load

    def read(self, job: str) -> Iterator[tuple[object, Entry]]:
        self.read_jobs.append(job)
        return self._reader.read(job)


def texts_of(reader: JournalReader) -> tuple[list[str], list[str]]:
    """The texts of the conversation, and the jobs whose entries were read for it."""
    counted = CountedReader(reader)
    return [each.text for each in recall(counted, SESSION).messages], counted.read_jobs  # type: ignore[arg-type]
