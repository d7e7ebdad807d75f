"""The status page in a real browser, over a real queue with a real poller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from handlers.demo.servers import free_port
from handlers.demo.stack import Stack, StackOptions
from tests.servers.chromium import Page, running_chromium
from tests.servers.forked import ForkedChild
from tests.servers.process import running_process
from tests.waiting import wait_until, wait_until_async

TOKEN = "a-token-of-the-status-page"  # made up, here
FAR = int(time.time()) + 86_400
CONFIG = """
queues:
  - {queue_name: summaries, labels: {tier: batch}}
  - queue_name: evaluations
    labels: {tier: async, classification: reserved}
    gate_type: redis
    gate_params: {address: "127.0.0.1:PORT", budget_key: gate-of-evaluations}
"""
# Use of the page without a mouse or without seeing it: labels, headings, names, contrast.
FAULTS = """(() => {
  const found = [];
  const text = element => (element.textContent || '').trim();
  for (const field of document.querySelectorAll('input:not([type=hidden], [hidden]), select'))
    if (!field.labels.length) found.push('no label: ' + field.outerHTML);
  for (const one of document.querySelectorAll('button, a')) if (!text(one)) found.push('no name: ' + one.outerHTML);
  for (const one of document.querySelectorAll('svg')) if (!one.getAttribute('aria-label')) found.push('svg');
  if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
  if (!document.documentElement.lang) found.push('no language');
  for (const one of document.querySelectorAll('table')) if (!one.querySelector('th[scope]')) found.push('table');
  if (document.documentElement.scrollWidth > innerWidth) found.push('scrolls sideways');
  const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = element => { for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor; if (!/, 0\\)$/.test(color)) return color; }
      return getComputedStyle(document.body).backgroundColor; };
  for (const one of document.querySelectorAll('p, a, dt, dd, th, td, label, button, h1, h2, summary, span, strong'))
    if (text(one) && one.getClientRects().length) {
      const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5) found.push('contrast of ' + one.outerHTML.slice(0, 80));
    }
  return found;
})()"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("status")


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[Stack]:
    port = free_port()
    config = folder / "config.yaml"
    config.write_text(CONFIG.replace("PORT", str(port)))
    variables = {"CONFIG_FILE": str(config), "GATE_REFRESH_SECONDS": "0.2"}
    options = StackOptions(child=ForkedChild, redis_port=port, has_pubsub=False, variables=variables)
    with Stack(options) as running, redis.Redis.from_url(running.redis_url, socket_timeout=60) as store:
        store.set("gate-of-evaluations", "0")
        _queue(store, "summaries", "good-1", {"prompt": "x"})
        _queue(store, "summaries", "hard-1", {"simulate": {"status": 503}})
        _queue(store, "summaries", "<b>bold</b>", {"simulate": {"status": 404}})
        store.zadd("summaries", {"no request at all": FAR})
        wait_until(lambda: store.llen("result-list") >= 2, "two results")
        # Nothing releases requests that were queued before the gate reads its key.
        wait_until(lambda: '"why_closed":"reads 0, closes at 0"' in _reports(running), "the gate to be closed")
        for number in range(5):
            _queue(store, "evaluations", f"held-{number}", {"prompt": "x"}, tenant=("red", "green")[number % 2])
        yield running


def _queue(store: redis.Redis, queue: str, name: str, payload: dict[str, object], tenant: str = "red") -> None:
    body = {
        "id": name,
        "created": int(time.time()),
        "deadline": FAR,
        "payload": payload,
        "metadata": {"userid": tenant},
    }
    store.zadd(queue, {json.dumps(body): FAR})


def _reports(stack: Stack) -> str:
    with redis.Redis.from_url(stack.redis_url, socket_timeout=60) as store:
        reports = store.hvals("{async-processor}:status:pollers")
        return b" ".join(reports).decode()


@pytest.fixture(scope="module")
def base_url(stack: Stack, folder: Path) -> Iterator[str]:
    """The page's own command, with a token."""
    token, port = folder / "token", free_port()
    token.write_text(f"{TOKEN}\n")
    command = [str(Path(sys.executable).parent / "async-processor"), "status", "--port", str(port)]
    variables = {
        "REDIS_URL": stack.redis_url,
        "REDIS_TIMEOUT_SECONDS": "60",
        "CONFIG_FILE": str(folder / "config.yaml"),
    }
    with running_process(
        command, env={**os.environ, **variables, "STATUS_TOKEN_FILE": str(token)}, stderr=subprocess.DEVNULL
    ):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _status(f"{url}/healthz") == 200, "the status page")
        wait_until(lambda: _shows_both(url), "both failures on the board")
        yield url


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        found: str = answer.read().decode()
        return found


def _shows_both(url: str) -> bool:
    text = _read(url)
    return "hard-1" in text and "bold" in text


def _status(url: str, data: bytes | None = None, host: str = "") -> int:
    request = urllib.request.Request(url, data, {"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with running_chromium() as opened:
        yield opened


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1_200, 390], ids=["desk", "phone"])
async def test_every_page_is_accessible_and_loads_nothing_from_other_hosts(
    page: Page, base_url: str, is_dark: bool, width: int, tmp_path: Path
) -> None:
    await page.resize(width, 900, is_dark=is_dark)
    for path in ("/", "/find?id=held-1", "/dead?queue=summaries", "/nowhere"):
        await page.open(f"{base_url}{path}")
        assert await page.run(FAULTS) == [], path
        beyond = "[...document.querySelectorAll('.scroll, html')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        if width < 600:
            assert await page.run(beyond) == 0, f"{path}: something is beyond the edge"
        await page.shoot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5_000
    assert {url.split("/")[2] for url in page.requested} == {base_url.split("/")[2]}
    assert [one for one in page.complaints if "404" not in one] == []


async def test_the_first_page_shows_queues_gates_and_failures(page: Page, base_url: str) -> None:
    await page.open(base_url)
    text = await page.run("document.body.innerText")
    assert "closed" in text
    assert "reserved-async" in text
    assert "unavailable (503)" in text
    assert "<b>bold</b>" in text, "an id is text, whatever it scans like"
    row = "[...document.querySelectorAll('tr')].find(r => r.querySelector('th')?.innerText === 'evaluations').innerText"
    assert (await page.run(row)).split()[:5] == ["evaluations", "5", "0", "0", "0"]
    await page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    tenants = await page.run("[...document.querySelectorAll('details')].map(one => one.innerText).join('\\n')")
    assert "red\t3\t0\t0" in tenants
    assert "green\t2\t0\t0" in tenants


async def test_a_request_is_found_with_the_keyboard_alone(page: Page, base_url: str) -> None:
    await page.open(base_url)
    for _ in range(20):
        await page.press("Tab")
        if await page.run("document.activeElement.id") == "id":
            break
    await page.type("held-1")
    await page.press("Enter", leads_away=True)
    assert "queued" in await page.run("document.body.innerText")

    async def is_between_two_attempts() -> bool:
        await page.open(f"{base_url}/find?id=hard-1")
        text = await page.run("document.body.innerText")
        assert "retried" in text, "what went wrong on its way"
        return "waiting for a retry" in text or "in flight" in text

    await wait_until_async(is_between_two_attempts, "a state other than queued again")
    await page.open(f"{base_url}/find?id=nobody")
    assert "It is unknown" in await page.run("document.body.innerText")


async def test_a_dead_letter_is_requeued_and_dropped_only_with_the_token(
    page: Page, base_url: str, stack: Stack
) -> None:
    with redis.Redis.from_url(stack.redis_url, socket_timeout=60) as store:
        await page.open(f"{base_url}/dead?queue=summaries")
        form = "document.querySelector('article form')"
        press = "{f}.querySelector('button[value={action}]').click()"
        await page.run(f"{form}.token.value = 'wrong-token'")
        await page.submit(press.format(f=form, action="drop"))
        assert "The token is wrong" in await page.run("document.body.innerText")
        assert store.hlen("summaries:dead") == 1

        member = json.dumps({"id": "again-1", "deadline": FAR, "payload": {"prompt": "x"}})
        letter = {"reason": "UNDELIVERABLE", "at": time.time() + 60, "score": FAR, "member": member}
        store.hset("summaries:dead", "f" * 40, json.dumps(letter))
        await page.open(f"{base_url}/dead?queue=summaries")
        assert await page.run("document.querySelectorAll('button[value=requeue]').length") == 1
        assert "Not to be queued again" in await page.run("document.body.innerText")
        await page.run(f"{form}.token.value = '{TOKEN}'")
        await page.submit(press.format(f=form, action="requeue"))
        assert "Queued again" in await page.run("document.body.innerText")
        assert store.hlen("summaries:dead") == 1

        await page.open(f"{base_url}/dead?queue=summaries")
        await page.run(f"{form}.token.value = '{TOKEN}'")
        await page.submit(press.format(f=form, action="drop"))
        assert store.hlen("summaries:dead") == 0


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/nowhere", None, 404),
        ("/dead?queue=other", None, 404),
        ("/", b"x=1", 405),
        ("/dead/change", None, 405),
        ("/dead/change", b"queue=summaries&dead_id=x&action=drop", 403),
        ("/dead/change", f"queue=summaries&dead_id=x&action=drop&token={TOKEN}".encode(), 404),
        ("/dead/change", f"queue=../x&dead_id=x&action=drop&token={TOKEN}".encode(), 404),
        ("/dead/change", f"queue=summaries&dead_id=x&action=read&token={TOKEN}".encode(), 400),
    ],
)
def test_missing_or_forbidden_topics_are_refused(base_url: str, path: str, data: bytes | None, status: int) -> None:
    assert _status(f"{base_url}{path}", data) == status


def test_a_foreign_name_that_resolves_to_this_machine_reads_nothing(base_url: str) -> None:
    """DNS rebinding: the browser connects here and sends the foreign name."""
    port = base_url.rpartition(":")[2]
    for path in ("/", "/find?id=hard-1", "/dead", "/style.css", "/dead/change"):
        request = urllib.request.Request(f"{base_url}{path}", headers={"Host": f"rebound.example:{port}"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        message = caught.value.read().decode()
        assert (caught.value.code, message.count("\n")) == (421, 1)
        assert "STATUS_HOSTS" in message
        assert "rebound" not in message
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert _status(base_url, host=f"{name}:{port}") == 200


def test_the_page_forbids_scripts_and_frames(base_url: str) -> None:
    with urllib.request.urlopen(base_url, timeout=60) as answer:
        policy = answer.headers["Content-Security-Policy"]
        text = answer.read().decode()
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script" not in text
    assert "prompt" not in text, "no payload is ever shown"


def test_the_page_without_redis_names_a_section_of_the_runbook() -> None:
    root = Path(__file__).parents[2]
    page = (root / "handlers/status/templates/unreachable.html").read_text(encoding="utf-8")
    [section] = re.findall("See “(.+?)” in the runbook", page)
    headings = re.findall(r"^## \d+\. (.+)$", (root / "docs/runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert section in headings
