"""The hooks of the site: pages that are made of the code, links to files outside of `docs`, and the files for coding agents."""

import gc
import logging
import os
import re
from pathlib import Path
from typing import Any

import origins
import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pages.ROOT
PROJECT = ["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/RESULTS.md"]
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
INCLUDED = re.compile(r"^<!-- include: (\S+) -->$", re.MULTILINE)
DRAWING = re.compile(r"^!\[([^\]]*)\]\((\S+\.svg)\)$", re.MULTILINE)
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
TEXTS: dict[str, tuple[str, str]] = {}
"""The title and the text of each page, for coding agents."""

_log = logging.getLogger("mkdocs.hooks.site")  # a warning of this logger fails a strict build


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation with the pages of the API and of the decisions."""
    gc.disable()  # a build keeps nearly all that it makes: to look through it took a tenth of its time
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    made = {
        "reference/api": [{name: f"reference/api/{name}.md"} for name in pages.PACKAGES],
        "decisions": ["decisions/index.md", *(f"decisions/{path.name}" for path in decisions)],
    }
    config.nav = _completed(config.nav, made)
    TEXTS.clear()
    return config


def _completed(nav: Any, made: dict[str, list[Any]]) -> Any:
    if isinstance(nav, list):
        return [_completed(each, made) for each in nav]
    if isinstance(nav, dict):
        return {title: _completed(each, made) for title, each in nav.items()}
    return made.get(nav, nav)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of the code, and those of the project that stand outside of `docs`."""
    made = {f"reference/api/{name}.md": pages.api_page(name) for name in pages.PACKAGES}
    made["reference/commands.md"] = pages.commands_page()
    made["reference/examples.md"] = pages.examples_page()
    made |= {f"project/{Path(name).name}": (ROOT / name).read_text() for name in PROJECT}
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [f"- [{path.read_text().split(chr(10), 1)[0].lstrip('# ')}]({path.name})" for path in decisions]
    made["decisions/index.md"] = "# Decisions\n\nWhat was chosen, why, and what lost.\n\n" + "\n".join(titles) + "\n"
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the project into links to their pages; a link to a file without a page becomes its text."""
    place = page.file.src_uri
    markdown = INCLUDED.sub(lambda found: _included((ROOT / "docs" / place).parent / found[1]), markdown)
    parts = CODE.split(markdown)  # text and code, in turn
    parts[::2] = [LINK.sub(lambda found: _link(found, place), part) for part in parts[::2]]
    text = "".join(parts)
    parts[::2] = [DRAWING.sub(lambda found: _drawing(found, place), part) for part in parts[::2]]
    api = place.removeprefix("reference/api/").removesuffix(".md")
    plain = pages.api_text(api) if place.startswith("reference/api/") else text
    TEXTS[place] = (page.title if isinstance(page.title, str) else place, plain)
    return "".join(parts)


def _included(path: Path) -> str:
    """Returns a file as a block of code."""
    language = {".yaml": "yaml", ".service": "ini"}.get(path.suffix, "docker")
    return f"```{language}\n{path.read_text().rstrip()}\n```"


def _drawing(found: re.Match[str], place: str) -> str:
    """Returns a drawing as part of the page, where it takes the colours of the page in place of its own."""
    drawing = ((ROOT / "docs" / place).parent / found[2]).read_text()
    # A drawing of `sabot plan` keeps its colours, and follows the switch of the page.
    if 'class="sabot-plan"' in drawing:
        drawing = drawing.replace("@media (prefers-color-scheme: dark)", '[data-md-color-scheme="slate"]')
    else:
        drawing = re.sub(r"<style>.*?</style>", "", drawing, flags=re.DOTALL)
    return f'<div class="drawing">\n{drawing}</div>'


def _link(found: re.Match[str], place: str) -> str:
    words, target = found[1], found[2]
    if target.startswith(("#", "http:", "https:", "mailto:")) or target.startswith("<"):
        return found[0]
    path, _, part = target.partition("#")
    project = {f"project/{Path(name).name}": name for name in PROJECT}
    source = ROOT / project.get(place, f"docs/{place}")
    there = Path(os.path.normpath(source.parent / path)).relative_to(ROOT).as_posix()
    page = _page_of(there)
    if page is None:
        return words[1:-1]
    page, given = page.split("#") if "#" in page else (page, part)
    return f"{words}({os.path.relpath(page, Path(place).parent)}{'#' if given else ''}{given})"


def _page_of(there: str) -> str | None:
    """Returns the page of the site that shows a file or a folder of the project, or None."""
    if there in PROJECT:
        return f"project/{Path(there).name}"
    if there == "README.md":
        return "index.md"
    if there.startswith("examples"):
        name = there.removeprefix("examples").strip("/").removesuffix(".py").replace("/", ".")
        return f"reference/examples.md#{name.replace('.', '')}" if there.endswith(".py") else "reference/examples.md"
    if there == "docs/decisions":
        return "decisions/index.md"
    return there.removeprefix("docs/") if there.startswith("docs/") else None


def on_post_build(config: MkDocsConfig) -> None:
    """Writes the files for coding agents: `llms.txt`, the text of each page, and `llms-full.md` with all pages.

    Warns of pages that the navigation leaves out, and of anything that a page would load from another origin.
    """
    site, ordered = Path(config.site_dir), [each for each in _leaves(config.nav) if each in TEXTS]
    for place in sorted(set(TEXTS) - set(ordered)):
        _log.warning("%s stands nowhere in the navigation (docs/site/mkdocs.yml)", place)
    for line in origins.of_site(site):
        _log.warning("loaded from another origin: %s", line)
    about = f"> {config.site_description}. All pages in one file: [llms-full.md](llms-full.md)"
    lines = [f"# {config.site_name}", "", about]
    for section in config.nav:
        for title, nav in section.items():
            lines += ["", f"## {title}", "", *(f"- [{TEXTS[place][0]}]({place})" for place in _leaves(nav))]
    (site / "llms.txt").write_text("\n".join(lines) + "\n")
    for place in ordered:
        (site / place).write_text(TEXTS[place][1])
    whole = [f"<!-- {place} -->\n\n{TEXTS[place][1].strip()}\n" for place in ordered]
    (site / "llms-full.md").write_text("\n".join(whole))


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    found = nav.values() if isinstance(nav, dict) else nav
    return [place for each in found for place in _leaves(each)]
