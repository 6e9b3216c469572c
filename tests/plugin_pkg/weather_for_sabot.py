"""A plugin, as a package brings it."""

from collections.abc import Mapping
from typing import Any

from sabot.agents import Operator, OperatorResult, Plugin, PluginCapability, PluginManifest, tool


@tool(effect="read")
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


class Forecast(Operator):
    async def execute(self, input_data: Any, context: Any = None) -> OperatorResult:
        return OperatorResult(weather.func(input_data["text"]))


class Weather(Plugin):
    @property
    def manifest(self) -> PluginManifest:
        return PluginManifest(
            "weather", "1.2", (PluginCapability.TOOLS, PluginCapability.OPERATOR), "Tells the weather."
        )

    def provide(self, capability: PluginCapability) -> Mapping[str, Any]:
        return {"tools": {"weather": weather}, "operator": {"forecast": Forecast()}}[capability]
