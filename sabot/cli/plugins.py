"""`sabot plugins`: lists the installed plugins, and those that cannot be loaded."""

from typing import Any

from sabot.cli.journal import Json, quietly
from sabot.cli.printing import columns, json_line
from sabot.errors import UserError
from sabot.specified.plugins import PluginRegistry


def plugins(json: Json = False) -> None:
    """List the installed plugins, what each provides, and why one cannot be loaded."""

    def work() -> None:
        registry = PluginRegistry().discover()
        rows: list[dict[str, Any]] = [
            {
                "plugin": each.manifest.name,
                "version": each.manifest.version,
                "brings": ", ".join(each.manifest.capabilities),
                "description": each.manifest.description,
            }
            for each in registry.plugins.values()
        ]
        rows += [
            {"plugin": each.name, "version": "", "brings": "", "description": f"{each.package}: {each.error}"}
            for each in registry.failed
        ]
        if json:
            for row in rows:
                json_line(row)
        else:
            columns(["plugin", "version", "brings", "description"], [list(row.values()) for row in rows])
        if registry.failed:
            count = len(registry.failed)
            raise UserError(
                f"{count} plugin{'s' if count > 1 else ''} cannot be loaded", hint="the list above says why"
            )

    quietly(work)
