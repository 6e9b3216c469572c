"""Options that several commands have."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sabot.cli.loading import WrongUse
from sabot.redaction import setting_name

__all__ = ["Kafka", "kafka_settings"]

Kafka = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the Kafka client.")]


def kafka_settings(given: Sequence[str] | None, option: str = "--kafka") -> dict[str, str]:
    """Settings by name, of `NAME=VALUE` each. Raises WrongUse."""
    settings = {}
    example = "security.protocol=ssl" if option == "--kafka" else "cleanup.policy=compact"
    for setting in given or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise WrongUse(
                f"{option} {setting_name(setting)} has no value",
                hint=f"write {option} NAME=VALUE, as in {example}",
            )
        settings[name] = value
    return settings
