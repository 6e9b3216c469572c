"""The screens of budgets, and of models, tools and programs, in a real browser."""

import asyncio
from pathlib import Path

import pytest
from integration.test_console_jobs_browser import look
from playwright.sync_api import expect
from unit.web.test_budget_screens import LIMITED
from unit.web.test_budget_screens import shop as shop_with_budgets
from unit.web.test_model_screens import shop as shop_with_models
from unit.web.test_stack_screens import slow_app

from sabot.web.console import Console
from tools.browser import Visit, opened_browser

pytestmark = pytest.mark.usefixtures("warm_starts")


def see(console: Console, folder: Path, screen: str, said: str, dark: bool, width: int) -> None:
    with opened_browser() as browser:
        visit = Visit(browser, dark=dark, width=width)
        page = visit.page
        page.goto(console.link)
        page.get_by_role("link", name=screen, exact=True).press("Enter")
        expect(page.locator("main")).to_contain_text(said)
        look(visit, folder / f"{screen}.png")
        page.get_by_label("Search").fill("nobody has this name")
        page.keyboard.press("Enter")
        expect(page.locator("main")).not_to_contain_text(said)
        visit.check()
        visit.context.close()


@pytest.mark.slow  # two seconds of a core in the browser
@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_budgets_are_seen(memory_url: str, tmp_path: Path, dark: bool, width: int) -> None:
    async with shop_with_budgets(memory_url, tmp_path / "state", LIMITED) as (_, console):
        await asyncio.to_thread(see, console, tmp_path, "Budgets", "170 tokens: 155 used", dark, width)


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_models_and_tools_are_seen(memory_url: str, tmp_path: Path, dark: bool, width: int) -> None:
    async with shop_with_models(memory_url, tmp_path / "state") as (_, console, _go):
        await asyncio.to_thread(see, console, tmp_path, "Models", "look_up", dark, width)


def see_the_stack(console: Console, folder: Path, dark: bool, width: int) -> None:
    with opened_browser() as browser:
        visit = Visit(browser, dark=dark, width=width)
        page = visit.page
        page.goto(console.link)
        page.get_by_role("link", name="Steps", exact=True).press("Enter")
        page.get_by_role("link", name="stack", exact=True).first.press("Enter")
        expect(page.locator("tbody tr").first).to_contain_text("go.wait()")
        look(visit, folder / "stack.png")
        visit.check()
        visit.context.close()


@pytest.mark.slow  # two seconds of a core in the browser
@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_the_stack_of_a_busy_task_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dark: bool, width: int
) -> None:
    async with slow_app(tmp_path, monkeypatch) as (_, console, _go):
        await asyncio.to_thread(see_the_stack, console, tmp_path, dark, width)
