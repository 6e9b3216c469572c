"""Drawings of plans as a browser shows them: with its fonts no text is cut off or hits another one, in light and in dark."""

from typing import Any

import pytest

pytest.importorskip("playwright", reason="pip install 'sabot[test]'")

from unit.engine.plan.test_drawing import drawn, figures, programs, shop

from sabot.engine.plan.drawing.render import render, svg
from tools.browser import Visit, opened_browser

# What a person would see at once, for each drawing of the page.
LOOK = """() => {
  const found = [];
  const channel = value => { const c = value / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => { const [a, b] = [light(one), light(other)].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); };
  const hits = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
  for (const drawing of document.querySelectorAll('svg')) {
    const name = drawing.parentNode.dataset.name, whole = drawing.getBoundingClientRect();
    const ground = getComputedStyle(drawing.querySelector('.paper')).fill;
    const texts = [...drawing.querySelectorAll('text')].map(text => [text, text.getBoundingClientRect()]);
    const boxes = [...drawing.querySelectorAll('rect.box')].map(box => [box, box.getBoundingClientRect()]);
    for (const [text, place] of texts) {
      const own = text.parentNode.querySelector('rect.box');
      const room = own ? own.getBoundingClientRect() : whole;
      if (place.left < room.left || place.right > room.right || place.top < room.top - 2 || place.bottom > room.bottom + 2)
        found.push(`${name}: cut off: ${text.textContent}`);
      for (const [box, around] of boxes)
        if (box !== own && hits(place, around)) found.push(`${name}: on a box: ${text.textContent}`);
      const least = contrast(getComputedStyle(text).fill, own ? getComputedStyle(own).fill : ground);
      if (least < 4.5) found.push(`${name}: contrast ${least.toFixed(1)}: ${text.textContent}`);
    }
    for (const [n, [text, place]] of texts.entries())
      for (const [other, there] of texts.slice(n + 1))
        if (hits(place, there)) found.push(`${name}: ${text.textContent} on ${other.textContent}`);
  }
  return [found, document.querySelectorAll('svg text').length];
}"""


def drawings() -> dict[str, str]:
    found = {name: svg(plan) for name, plan in list(programs().items())[::4]}
    found |= {f"drawn by lot {seed}": render(drawn(seed)) for seed in range(6)}
    found["with figures"] = svg(shop(), figures(123_456.0, 0.9, 0.55))
    return found


@pytest.mark.slow  # a browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_text_is_cut_off_or_on_another_one_and_all_can_be_read(dark: bool) -> None:
    page = "".join(f"<div data-name='{name}'>{drawing}</div>" for name, drawing in drawings().items())
    with opened_browser() as browser:
        visit = Visit(browser, dark=dark, width=12_000)
        visit.page.set_content(f"<!doctype html><meta charset=utf-8>{page}")
        found: Any
        found, texts = visit.page.evaluate(LOOK)
        visit.check()
    assert texts > 500
    assert found == []


@pytest.mark.slow  # a browser
def test_text_that_is_larger_than_it_was_measured_is_seen() -> None:
    drawing = svg(shop()).replace("font: 11px", "font: 16px").replace("font-size: 13px", "font-size: 22px")
    with opened_browser() as browser:
        visit = Visit(browser)
        visit.page.set_content(f"<div data-name='shop'>{drawing}</div>")
        found, _ = visit.page.evaluate(LOOK)
    assert any("cut off" in each for each in found)
