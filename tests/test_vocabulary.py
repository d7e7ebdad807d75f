"""Status page, `top`, demo, commands and docs use one set of words; see the glossary in docs/architecture.md."""

from __future__ import annotations

import ast
import io
import pydoc
import re
from pathlib import Path

import click
import pytest
from rich.console import Console

import async_processor
import handlers.client
from handlers.cli.main import COMMANDS, main
from handlers.cli.top import frame
from handlers.demo.view import DemoTally, latency_table, progress_line, stages
from handlers.forward.middleware.breaker import CircuitState
from handlers.gates.gate import BANDS
from handlers.redis_store.admin.depths import QueueDepths
from handlers.redis_store.submit.submissions import RequestState
from handlers.status.overview import Minute, Overview, QueueLine, minutes
from handlers.status.report import Failure
from tests.test_structure import text_of, tracked, tree_of

TEMPLATES = tracked("handlers/status/templates/*.html")
SCREENS = [
    *TEMPLATES,
    *tracked("handlers/status/*.py", "handlers/demo/*.py", "handlers/cli/*.py"),
]
PAGES = [Path("README.md"), *tracked("docs/*.md", "keda/README.md", "knative/README.md")]

SYNONYMS = {
    r"\b(?:median|mean latency|percentiles?)\b": "p50, p95, p99",
    r"\bp(?:90|99\.9|999)\b": "p50, p95, p99",
    r"\b(?:half|95|99) (?:of 100|% within)\b": "p50, p95, p99",
    r"\bcircuit (?:is )?(?:well|broken|tripped|ok)\b": "open, closed",
    r"\b(?:for retry|tried again)\b": "waiting for a retry, retried",
    r"\bwait(?:s|ing)? for (?:its|the) next attempt\b": "waiting for a retry",
    r"\battempt 0\b": "attempts count from 1",
    r"\b(?:dead messages?|dead requests?|graveyard|dead[- ]letter queue)\b": "dead letter",
    r"\b(?:failed|red)[^.|]{0,20}\bcancelled (?:ones|requests)\b": "cancelled requests are not failures",
}
"""Forbidden words, with the one to use."""


def shown_in(path: Path) -> str:
    """The text of a file that a reader of the screen or page sees."""
    if path.suffix != ".py":
        return text_of(path)
    tree = tree_of(path)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]
    return "\n".join(texts)


@pytest.mark.parametrize("path", [*SCREENS, *PAGES], ids=str)
def test_a_thing_has_one_word(path: Path) -> None:
    text = shown_in(path)
    found = [
        f"{match[0]!r}: say {instead}"
        for pattern, instead in SYNONYMS.items()
        for match in re.finditer(pattern, text, re.I)
    ]
    assert found == []


def top_text(width: int = 80, **fields: object) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(frame(Overview(at=1.0, **fields), None))  # type: ignore[arg-type]  # fields of one test each
    return console.export_text()


def page_text() -> str:
    return "\n".join(text_of(path) for path in TEMPLATES)


def test_screens_show_the_same_percentiles() -> None:
    shares = {"p50", "p95", "p99"}
    per_minute = [Minute(1, 0, 0, 0.1, 0.2, 0.3), Minute(0, 0, 0, None, None)]
    demo = str(latency_table("x", {"Redis": stages(DemoTally(), [])}).columns[0].header)
    for text in (top_text(minutes=per_minute), text_of(Path("handlers/status/templates/first.html")), demo):
        assert set(re.findall(r"\bp\d+\b", re.sub(r'class="\w+"', "", text))) == shares
    assert "p99 300 ms" in top_text(minutes=per_minute)


def test_all_screens_use_the_same_names_of_states() -> None:
    depths = QueueDepths(pending=1, claimed=2, retrying=3, dead=4)
    line = QueueLine("q", QueueDepths(1, 2, 3, 4), 2, 0, "p", BANDS[0], "closed")
    demo = progress_line(depths, {"Redis": DemoTally()})
    for state in ("queued", "in flight", "waiting for a retry"):
        assert state in demo
        assert state in top_text(queues=[line], retrying=3)
        assert state in page_text().lower()
        assert state in text_of(Path("handlers/cli/where.py"))
        assert state in text_of(Path("docs/client.md"))
    assert "4 dead letters" in top_text(queues=[line])
    assert "claimed" not in demo + top_text(queues=[line])


def test_every_state_of_the_client_is_explained_with_the_screens_word() -> None:
    page = text_of(Path("docs/client.md"))
    assert [state.name for state in RequestState if f"`{state.name}`" not in page] == []


def test_attempts_count_from_one() -> None:
    failure = Failure(1.0, "r", "q", 0, "dns")
    line = next(line for line in top_text(failures=[failure]).splitlines() if "dns" in line)
    assert line.split()[2] == "1"
    shown = [text for text in re.findall(r"failure\.attempt[^}]*", page_text()) if "+ 1" not in text]
    assert shown == []


def test_cancelled_is_neither_failed_nor_red() -> None:
    [minute] = minutes([{"cancelled": 3}])
    assert (minute.cancelled, minute.failed, minute.answered) == (3, 0, 0)
    style = text_of(Path("handlers/status/templates/style.css"))
    colours = set(re.findall(r"\.cancelled[^{]*\{[^}]*var\(--(\w+)\)", style))
    assert colours == {"soft"}


def test_every_page_that_shows_lanes_explains_them() -> None:
    assert "A lane is a priority class" in page_text()
    for page in ("docs/config-file.md", "docs/architecture.md"):
        assert re.search(r"\blane\b", text_of(Path(page)))
    assert [lane for lane in BANDS if lane not in text_of(Path("docs/config-file.md"))] == []


def test_summaries_in_help_are_whole() -> None:
    """click cuts a summary that does not fit at 80 columns, and ends it in `...`."""
    context = click.Context(main)
    groups = [command for name in COMMANDS if isinstance(command := main.get_command(context, name), click.Group)]
    assert groups
    for group in groups:
        assert (
            "..."
            not in group.get_help(click.Context(group, info_name=group.name, terminal_width=80))
            .split("Commands:")[1]
            .split("\n\n")[0]
        )


def test_help_of_the_package_fits_on_a_screen_and_names_everything() -> None:
    text = pydoc.plain(pydoc.render_doc(async_processor))
    assert len(text.splitlines()) <= 60
    names = set(handlers.client.__all__)
    assert {name for name in dir(async_processor) if name[0].isupper()} == names
    assert [name for name in names if name not in text] == []


@pytest.mark.parametrize("state", CircuitState)
def test_the_glossary_explains_each_state_of_a_circuit(state: CircuitState) -> None:
    glossary = text_of(Path("docs/architecture.md")).partition("## Glossary")[2]
    explained = re.search(rf"^\| {state} \(circuit\) \| (.+) \|$", glossary, re.MULTILINE)
    assert explained is not None
    assert len(explained[1]) > 20
