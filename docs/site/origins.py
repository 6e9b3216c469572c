"""Finds what a built page would load from another origin: fonts, scripts, styles, pictures and frames."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
_LOADED = {"img", "script", "iframe", "source", "video", "audio", "embed", "object", "input"}
# An element with its attributes, or a comment, a script or styles as a whole: `<` in their text begins no element.
_ATTRIBUTES = r"""(?:[^>"']++|"[^"]*"|'[^']*')*+>"""
_ELEMENT = re.compile(
    rf"<!--.*?-->|<(script|style)\b{_ATTRIBUTES}.*?</\1|<[a-z]{_ATTRIBUTES}", re.IGNORECASE | re.DOTALL
)
_MAY_LOAD = re.compile(rf"<(?:link|{'|'.join(sorted(_LOADED))})\b|<[a-z].*(?:style|mermaid)", re.IGNORECASE | re.DOTALL)
_NO_LOAD = {"canonical", "alternate", "next", "prev"}  # kinds of <link> that a browser does not fetch


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the addresses of an element that a browser would fetch."""
        given = {name: value or "" for name, value in attrs}
        names = ("src", "srcset", "data", "poster") if tag in _LOADED else ()
        if tag == "link" and given.get("rel") not in _NO_LOAD:
            names = ("href",)
        self.found += [given[name] for name in names if _ELSEWHERE.match(given.get(name, ""))]
        self.found += _IN_STYLES.findall(given.get("style", ""))
        if "mermaid" in given.get("class", "").split():
            self.found.append("mermaid, which the theme would load from a CDN")


def of_page(text: str) -> list[str]:
    """Returns the addresses on other origins that a page would load. Links that a reader follows are not among them."""
    page = _Page()
    for element in _ELEMENT.finditer(text):
        if _MAY_LOAD.match(element[0]):  # few of them: the parser takes 10 µs for each
            page.reset()
            page.feed(element[0])
    return page.found + _IN_STYLES.findall(" ".join(re.findall(r"<style.*?</style>", text, re.DOTALL)))


def of_site(site: Path) -> Iterator[str]:
    """Returns a line for each address on another origin that a page or a style sheet of a built site would load."""
    for path in sorted(site.rglob("*")):
        if path.suffix in (".html", ".css"):
            text = path.read_text()
            for address in of_page(text) if path.suffix == ".html" else _IN_STYLES.findall(text):
                yield f"{path.relative_to(site)}: {address}"
