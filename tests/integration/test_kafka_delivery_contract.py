"""What `connectors/base.py` promises of every sink that delivers, on a topic of a real broker.

A crash at each step for itself is in test_kafka_delivery, by SIGKILL.
"""

import json
import uuid
from collections.abc import Callable

import pytest

from contracts.delivery_places import Row
from contracts.test_delivery_contract import (  # noqa: F401 - pytest finds them here
    place,
    test_a_claim_tells_the_last_part,
    test_a_part_that_comes_again_changes_nothing,
    test_a_part_without_rows_moves_the_token,
    test_a_sink_that_was_not_claimed_delivers_nothing,
    test_agents_results_are_parts_too,
    test_crash_after_crash_comes_to_an_end,
    test_numbers_of_another_incarnation_count_anew,
    test_parts_are_there_in_order_when_deliver_returns,
    test_settle_moves_the_token_and_nothing_else,
    test_tracks_do_not_know_of_each_other,
    test_who_lost_the_track_is_refused,
    watched,
)
from sabot.kafka import KafkaSink, admin
from tools.kafka_eyes import committed

pytestmark = pytest.mark.kafka


class KafkaDelivery:
    """A topic with one partition."""

    fences = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.topic = f"t-{uuid.uuid4().hex[:12]}"

    def sink(self) -> KafkaSink:
        return KafkaSink(self.topic, self.url)

    def rows(self) -> list[Row]:
        if not admin.partitions(self.url, self.topic):
            return []
        return [(value["n"], value["text"]) for value in map(json.loads, committed(self.url, self.topic))]


@pytest.fixture
def new_place(kafka_url: str) -> Callable[[], KafkaDelivery]:
    return lambda: KafkaDelivery(kafka_url)
