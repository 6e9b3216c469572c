"""Options that several commands have."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sabot.cli.loading import WrongUse
from sabot.redaction import setting_name

__all__ = ["Kafka", "kafka_settings"]

Kafka = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the Kafka client.")]


def kafka_settings(given: Sequence[str] | None) -> dict[str, str]:
    """Settings by name, of `NAME=VALUE` each. Raises WrongUse."""
    settings = {}
    for setting in given or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise WrongUse(
                f"--kafka {setting_name(setting)} has no value",
                hint="write --kafka NAME=VALUE, as in security.protocol=ssl",
            )
        settings[name] = value
    return settings
