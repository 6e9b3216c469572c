"""Settings of the Kafka client of a journal."""

import pytest

from sabot.errors import UserError
from sabot.journal.kafka import KafkaJournal


def test_a_setting_that_would_break_a_promise_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"kafka: acks=1 is not for users to set: .*be lost") as refused:
        KafkaJournal("kafka://127.0.0.1:1/journal", kafka={"acks": 1})
    assert refused.value.hint.startswith("leave it out")
