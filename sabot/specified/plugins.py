"""Plugins: packages with tools, operators, policies, connectors or stores. They declare an entry point of the group
`sabot.plugins`.

   [project.entry-points."sabot.plugins"]
   weather = "weather_for_sabot:plugin"          a Plugin, its class, or a function that returns one

A plugin that cannot be loaded, or has no proper manifest, is listed with its error; the others are loaded all the same.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sabot.base.config import checked_name
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.tools import Tool
from sabot.errors import UserError, message_of, short_repr

GROUP = "sabot.plugins"

_log = logging.getLogger("sabot.agents.plugins")


class PluginCapability(StrEnum):
    """The kinds of objects that a plugin may provide. MEMORY means stores of jobs, conversations or ledgers, and UI
    means views of jobs for people.
    """

    TOOLS = "tools"
    OPERATOR = "operator"
    POLICY = "policy"
    CONNECTOR = "connector"
    MEMORY = "memory"
    UI = "ui"


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class PluginManifest:
    """The description of a plugin: its name, its version, the kinds of objects that it provides (`capabilities`), a
    description and an author. Raises UserError if a field is not valid.
    """

    name: str
    version: str
    capabilities: tuple[PluginCapability, ...]
    description: str = ""
    author: str = ""

    def __post_init__(self) -> None:
        checked_name(self.name, "PluginManifest: name")
        if not isinstance(self.version, str) or not self.version:
            raise UserError(f"plugin {self.name}: version={short_repr(self.version)}", hint='a text, like "1.0"')
        try:
            object.__setattr__(self, "capabilities", tuple(map(PluginCapability, self.capabilities)))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"plugin {self.name}: capabilities={short_repr(self.capabilities)}: {error}",
                hint=f"there are {', '.join(PluginCapability)}",
            ) from error
        if not self.capabilities:
            raise UserError(
                f"plugin {self.name} brings nothing", hint=f"capabilities are {', '.join(PluginCapability)}"
            )


class Plugin(ABC):
    """The base class of plugins. A subclass has a manifest, and provides the objects of each kind that is named in its
    manifest.
    """

    @property
    @abstractmethod
    def manifest(self) -> PluginManifest:
        """The description of the plugin."""

    @abstractmethod
    def provide(self, capability: PluginCapability) -> Mapping[str, Any]:
        """Returns the objects of this kind that the plugin provides, by name. For TOOLS they are functions or Tools."""


@dataclass(frozen=True, slots=True)
class FailedPlugin:
    """A plugin that could not be loaded: the name of its entry point, the package that has it, and the error."""

    name: str
    package: str
    error: str


@dataclass(slots=True)
class PluginRegistry:
    """The plugins of a program. `discover` loads the installed plugins, and `register` adds a single one. `plugins`
    contains them by name, and `failed` contains the plugins that could not be loaded.
    """

    plugins: dict[str, Plugin] = field(default_factory=dict)
    failed: list[FailedPlugin] = field(default_factory=list)
    _provided: dict[PluginCapability, dict[str, tuple[str, Any]]] = field(default_factory=dict)

    def register(self, plugin: Plugin) -> None:
        """Adds a plugin. Raises UserError if the object is not a Plugin with a manifest, if there is already a plugin
        or an object of the same name, or if the plugin does not provide a kind of objects that its manifest names.
        """
        if not isinstance(plugin, Plugin):
            raise UserError(f"{short_repr(plugin)} is no plugin", hint="a subclass of sabot.agents.Plugin")
        manifest = plugin.manifest
        if not isinstance(manifest, PluginManifest):
            raise UserError(
                f"plugin {short_repr(plugin)}: its manifest is {short_repr(manifest)}", hint="a PluginManifest"
            )
        if manifest.name in self.plugins:
            raise UserError(f"there are two plugins {manifest.name}")
        brought = {each: self._checked(manifest, each, plugin.provide(each)) for each in manifest.capabilities}
        for capability, things in brought.items():
            self._provided.setdefault(capability, {}).update(
                {name: (manifest.name, each) for name, each in things.items()}
            )
        self.plugins[manifest.name] = plugin

    def _checked(self, manifest: PluginManifest, capability: PluginCapability, things: Any) -> Mapping[str, Any]:
        where = f"plugin {manifest.name}: its {capability}"
        if not isinstance(things, Mapping) or not all(isinstance(name, str) and name for name in things):
            raise UserError(f"{where}: {short_repr(things)}", hint="a dict by names")
        for name in things:
            if name in self._provided.get(capability, {}):
                other, _ = self._provided[capability][name]
                raise UserError(f"{where} {name} is that of plugin {other} too")
            if (
                capability is PluginCapability.TOOLS
                and not isinstance(things[name], Tool)
                and not callable(things[name])
            ):
                raise UserError(f"{where} {name} is {short_repr(things[name])}", hint="a function, or a tool")
        return things

    def discover(self, found: Callable[[], Iterator[EntryPoint]] | None = None) -> "PluginRegistry":
        """Loads the installed plugins, which are the entry points of the group "sabot.plugins". Returns the registry
        itself. A plugin that cannot be loaded, or whose name is taken, is logged and added to `failed`; so a second call
        adds each plugin to `failed`. Tests can pass `found`, a function that yields other entry points.
        """
        for entry in found() if found is not None else iter(entry_points(group=GROUP)):
            package = entry.dist.name if entry.dist is not None else ""
            try:
                loaded = entry.load()
                self.register(loaded if isinstance(loaded, Plugin) or not callable(loaded) else loaded())
            except (Exception, SystemExit) as error:  # the package may raise anything
                failed = FailedPlugin(entry.name, package, f"{type(error).__name__}: {message_of(error)}")
                self.failed.append(failed)
                _log.warning("plugin %s of package %s is left out: %s", failed.name, failed.package, failed.error)
        return self

    def provided(self, capability: PluginCapability | str) -> dict[str, Any]:
        """Returns the objects that all plugins provide for this capability, by name. Raises UserError for an unknown
        capability.
        """
        try:
            wanted = PluginCapability(capability)
        except ValueError as error:
            raise UserError(f"{error}", hint=f"there are {', '.join(PluginCapability)}") from error
        return {name: thing for name, (_, thing) in self._provided.get(wanted, {}).items()}

    @property
    def tools(self) -> list[Any]:
        """The tools of all plugins, for example for `Agent(engine, tools=[*registry.tools])`."""
        return list(self.provided(PluginCapability.TOOLS).values())
