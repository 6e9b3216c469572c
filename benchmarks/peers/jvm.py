"""Peers in Java: jars by Maven, a program of one file compiled against them, in .venv-peers/; and the command that starts it."""

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["JavaPeer", "NotThere"]

PLACE = Path(__file__).parents[2] / ".venv-peers"
# what Flink's own start script opens to it on Java 17
OPENED = ["java.lang", "java.util", "java.util.concurrent", "java.nio", "java.lang.reflect", "java.net", "java.time"]


class NotThere(Exception):
    """The peer cannot be run here, and why."""


class JavaPeer:
    """The program is folder/NAME.java, its jars are those of folder/pom.xml. services: interfaces and the classes that provide them."""

    def __init__(self, folder: Path, name: str, services: dict[str, str] | None = None) -> None:
        self._source, self._pom = folder / f"{name}.java", folder / "pom.xml"
        self._services = services or {}
        place = PLACE / folder.name
        self._place, self._jars, self._classes = place, place / "lib", place / "classes"

    def prepare(self) -> None:
        """Jars and classes are there afterwards. Raises NotThere."""
        for tool in ("java", "javac", "mvn"):
            if shutil.which(tool) is None:
                raise NotThere(f"there is no {tool}")
        mark, wanted = self._place / "pom.xml", self._pom.read_text()  # the mark is written last
        if not mark.exists() or mark.read_text() != wanted:
            shutil.rmtree(self._place, ignore_errors=True)
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={self._jars}"]
            fetched = subprocess.run(["mvn", "-q", "-B", "-f", self._pom, *goal], stdout=sys.stderr)
            if fetched.returncode:
                raise NotThere("Maven did not fetch its jars")
            mark.write_text(wanted)
        made = self._classes / f"{self._source.stem}.class"
        if made.exists() and made.stat().st_mtime >= self._source.stat().st_mtime:
            return
        services = self._classes / "META-INF" / "services"
        services.mkdir(parents=True, exist_ok=True)
        for interface, provider in self._services.items():
            (services / interface).write_text(f"{provider}\n")
        command = ["javac", "-nowarn", "-cp", f"{self._jars}/*", "-d", self._classes, self._source]
        subprocess.run(command, check=True, stdout=sys.stderr)

    def command(self, heap: str, *arguments: str) -> list[str]:
        """Of a JVM that has all its heap from the beginning."""
        command = ["java", f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseG1GC"]
        command += [option for name in OPENED for option in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")]
        return [*command, "-cp", f"{self._classes}:{self._jars}/*", self._source.stem, *arguments]
