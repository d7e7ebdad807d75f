"""Tests do not depend on the machine's speed: only benchmarks and chaos runs judge time, CPU and memory."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_structure import SOURCES, text_of, tree_of

MAY_MEASURE = ("bench", "chaos")
TESTS = [path for path in SOURCES if path.parts[0] == "tests" and path.parts[1] not in MAY_MEASURE]

MEASUREMENT = re.compile(
    r"\b(?:monotonic|perf_counter|process_time|thread_time|getrusage|ru_maxrss|memory_info|memory_full_info"
    r"|elapsed|get_traced_memory|(?:\w+_)?(?:cpu|rss)(?:_\w+)?)(?:_ns)?\b",
    re.I,
)
"""Names whose value depends on the machine's speed, its load or its allocator."""
WALL_CLOCK = re.compile(r"\b(?:time\.time(?:_ns)?|datetime\.(?:datetime\.)?(?:utc)?now)\b")
TIME_OF_DAY = re.compile(rf"{WALL_CLOCK.pattern}|\bserver_time\b|\b(?:bench|self)\._?now\(\)")
"""Readings of the time of day. A time server may set the clock at any moment."""
CLOCK_MAY_BE_SET = "CLOCK_SET_SECONDS"
ORDER = ast.Lt | ast.LtE | ast.Gt | ast.GtE
REMAINING_TIME = re.compile(r"\bp?ttl\b")
LEASE = re.compile(r"(?i)(?:\w+_)?(?:lease|ttl)_seconds")
SHORTEST_LEASE_SECONDS = 5
SHORTEST_WAIT_SECONDS = 60
LEASE_ENDS_UNDER_CONTROL = "the test ends this lease"
"""In a comment on the line: the lease may be short, because an injected clock or the test itself ends it."""

WAIT = re.compile(r"\b(?:wait_|until_)\w+\(")
"""A call that waits until something is so."""
READERS = re.compile(
    r"(?:\w+_)?(?:page|output|ready|connections|num_fds|num_threads|llen|zcard|hlen|exists|look_up|read_text"
    r"|value|values|query|state|state_of|gateway_state|page_text|shows|depths)"
)
"""Functions that read what another process or task writes."""
CANNOT_CHANGE = "does not change any more"
"""In a comment on the line: the value is final, or a maximum."""

HTTPX = re.compile(r"httpx\.(?:AsyncClient|Client|get|post|put|delete|head|request|stream)")
FIVE_SECONDS = re.compile(rf"{HTTPX.pattern}|(?:\w+\.)*(?:Sync|Async)?Redis(?:\.from_url)?|\w*redis\.from_url")
"""Calls that wait for five seconds unless they name a limit."""
NAMED_LIMITS = {"timeout", "transport", "socket_timeout"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_of(node: ast.AST) -> str:
    """The code of an expression without its texts."""
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is str]
    code = ast.unparse(node)
    for text in texts:
        code = code.replace(repr(text), "''")
    return code


def dotted(node: ast.expr) -> str:
    """The name of a called function, such as `asyncio.timeout`; `.attr` for an attribute of anything but a name.

    `ast.unparse` takes more than four times as long.
    """
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "", *reversed(parts)])


def assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets and values of an assignment, in pairs if both sides are tuples."""
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def names_assigned_from(assigned: list[tuple[ast.expr, str]], source: re.Pattern[str]) -> re.Pattern[str]:
    """A pattern of `source` and of the local names assigned from it, directly or by way of other names.

    `assigned` has the targets of a function's assignments, each with the code of its value.
    """
    found = source
    for target, code in assigned:
        if found.search(code):
            names = [rf"\b{name.id}\b" for name in ast.walk(target) if isinstance(name, ast.Name)]
            found = re.compile("|".join([found.pattern, *names]), source.flags)
    return found


def has_number(node: ast.AST) -> bool:
    """Whether an expression contains a number other than 0, or a constant in capitals."""
    return any(
        (isinstance(part, ast.Constant) and type(part.value) in (int, float) and part.value != 0)
        or (isinstance(part, ast.Name) and part.id.isupper())
        for part in ast.walk(node)
    )


def speed_comparisons(tree: ast.AST) -> Iterator[int]:
    """Lines of assertions that compare measured time, CPU, memory or a remaining TTL with a number."""
    for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
        nodes = list(ast.walk(function))
        asserts = (node for node in nodes if isinstance(node, ast.Assert))
        compares = [part for node in asserts for part in ast.walk(node.test) if isinstance(part, ast.Compare)]
        if not any(map(has_number, compares)):
            continue
        assigned = [(target, code_of(value)) for node in nodes for target, value in assignments(node)]
        measured = names_assigned_from(assigned, MEASUREMENT)
        clock = names_assigned_from(assigned, WALL_CLOCK)
        remaining = names_assigned_from(assigned, REMAINING_TIME)
        for compare in compares:
            code = code_of(compare)
            differences = [
                code_of(part)
                for part in ast.walk(compare)
                if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub)
                if code_of(part.right) != CLOCK_MAY_BE_SET
            ]
            is_rough = "approx(" in code or not all(isinstance(one, ast.Eq) for one in compare.ops)
            is_speed = (
                measured.search(code)
                or (is_rough and any(clock.search(difference) for difference in differences))
                or (remaining.search(code) and "approx(" in code)
            )
            if is_speed and has_number(compare):
                yield compare.lineno


def exact_times_of_day(tree: ast.AST) -> Iterator[int]:
    """Lines of assertions that fail if the clock is set between two readings of it."""
    for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
        nodes = list(ast.walk(function))
        asserts = (node for node in nodes if isinstance(node, ast.Assert))
        compares = [part for node in asserts for part in ast.walk(node.test) if isinstance(part, ast.Compare)]
        ordered = [one for one in compares if any(isinstance(op, ORDER) for op in one.ops)]
        if not ordered:
            continue
        assigned = [(target, code_of(value)) for node in nodes for target, value in assignments(node)]
        shown = names_assigned_from(assigned, TIME_OF_DAY)
        for compare in ordered:
            code = code_of(compare)
            if shown.search(code) and not REMAINING_TIME.search(code) and CLOCK_MAY_BE_SET not in code:
                yield compare.lineno


def settings_given(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Every name and value given as a keyword, in a dictionary or as a parameter's default."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from ((keyword.arg or "", keyword.value) for keyword in node.keywords)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, value
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            defaults = positional[len(positional) - len(node.defaults) :]
            yield from zip((one.arg for one in defaults), node.defaults, strict=True)
            yield from (
                (one.arg, default) for one, default in zip(node.kwonlyargs, node.kw_defaults, strict=True) if default
            )


def constants_of(tree: ast.Module) -> dict[str, ast.expr]:
    """The values of a module's constants by name."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    return found


def short_leases(text: str, tree: ast.Module) -> Iterator[int]:
    """Lines that give a lease or TTL so short that a busy machine may let it expire."""
    lines = text.splitlines()
    constants = constants_of(tree)
    for name, given in settings_given(tree):
        value = constants.get(given.id, given) if isinstance(given, ast.Name) else given
        if not LEASE.fullmatch(name) or not isinstance(value, ast.Constant):
            continue
        is_number = re.fullmatch(r"[\d.]+", str(value.value))
        is_short = is_number and 0 < float(str(value.value)) < SHORTEST_LEASE_SECONDS
        if is_short and LEASE_ENDS_UNDER_CONTROL not in lines[given.lineno - 1]:
            yield given.lineno


def short_waits(tree: ast.Module) -> Iterator[int]:
    """Lines that wait for an event less long than a busy machine may need; under a second is meant to end."""
    names = ("timeout", "timeout_seconds", "within", "wait_seconds")
    constants = constants_of(tree)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and (node.args or node.keywords))
    for node in calls:
        limits = [keyword.value for keyword in node.keywords if keyword.arg in names]
        code = dotted(node.func)
        match code.rpartition(".")[2], code:
            case _, "asyncio.timeout":
                limits = node.args
            case _, "asyncio.wait_for":
                limits += node.args[1:]
            case "communicate" | "wait_until" | "wait_until_async", _:
                limits += node.args[2:]
            case "wait", _ if len(node.args) == 1 and not limits:
                limits = node.args
            case "ask" | "blpop" | "get" | "join" | "receive" | "result" | "run" | "urlopen" | "wait", _:
                pass
            case _ if HTTPX.fullmatch(code):
                pass
            case _:
                continue
        values = [constants.get(one.id, one) if isinstance(one, ast.Name) else one for one in limits]
        numbers = [one.value for one in values if isinstance(one, ast.Constant) and type(one.value) in (int, float)]
        if any(1 <= float(str(seconds)) < SHORTEST_WAIT_SECONDS for seconds in numbers):
            yield node.lineno


def default_waits(tree: ast.AST) -> Iterator[int]:
    """Lines that use the time limit of httpx or of the Redis library, which is 5 s."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or {one.arg for one in node.keywords} & NAMED_LIMITS:
            continue
        if FIVE_SECONDS.fullmatch(dotted(node.func)):
            yield node.lineno


def waited_for(statement: ast.stmt) -> ast.Call | None:
    """The call of a statement that waits until something is so."""
    call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
    call = call.value if isinstance(call, ast.Await) else call
    if not isinstance(call, ast.Call):
        return None
    names = (dotted(part.func) for part in ast.walk(call) if isinstance(part, ast.Call))
    return call if any(WAIT.search(f"{name}(") for name in names) else None


def reads(node: ast.AST) -> set[str]:
    """The calls in an expression that read what another process or task writes."""
    calls = (part for part in ast.walk(node) if isinstance(part, ast.Call))
    return {ast.unparse(call) for call in calls if READERS.fullmatch(dotted(call.func).rpartition(".")[2])}


def reads_after_another_wait(text: str, tree: ast.AST) -> Iterator[int]:
    """Lines of assertions after a wait, with at most assignments between, that read something else.

    An assertion that something is not so is no race: it may be true before and after.
    """
    lines = text.splitlines()
    fields = ("body", "orelse", "finalbody")
    for block in (getattr(node, field, None) for node in ast.walk(tree) for field in fields):
        awaited, assigned = set[str](), dict[str, set[str]]()
        has_waited = False
        for statement in block if isinstance(block, list) else []:
            if call := waited_for(statement):
                has_waited, awaited, assigned = True, reads(call), {}
            elif not has_waited:
                continue
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    assigned[ast.unparse(target)] = reads(statement.value)
            elif isinstance(statement, ast.Assert):
                names = {part.id for part in ast.walk(statement.test) if isinstance(part, ast.Name)}
                read = reads(statement.test).union(*(assigned.get(name, set()) for name in names))
                is_marked = CANNOT_CHANGE in lines[statement.lineno - 1]
                if read - awaited and not is_denial(statement.test) and not is_marked:
                    yield statement.lineno
            else:
                has_waited = False


def is_denial(test: ast.expr) -> bool:
    """Whether an assertion is about the absence of something."""
    return (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)) or (
        isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.NotIn)
    )


def faults(text: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines that depend on the speed of the machine or on its clock, each with what to do instead."""
    if any(pattern.search(text) for pattern in (MEASUREMENT, WALL_CLOCK, REMAINING_TIME)):
        for line in speed_comparisons(tree):
            yield line, "count events, read stored expiries or inject a clock; figures belong in tests/bench"
    if TIME_OF_DAY.search(text):
        for line in exact_times_of_day(tree):
            yield line, f"allow {CLOCK_MAY_BE_SET} of tests/waiting.py on both sides, or inject a clock"
    if WAIT.search(text):
        for line in reads_after_another_wait(text, tree):
            yield line, "another process may still be about to write it: wait for it as well"
    for line in (*short_waits(tree), *default_waits(tree)):
        yield line, "wait 60 s: only a failing test waits that long"
    for line in short_leases(text, tree):
        yield line, "take a long lease and end it in the test: ZADD its score into the past, PEXPIRE its key"


def test_no_test_depends_on_the_speed_of_the_machine_or_on_its_clock() -> None:
    """All rules in one test: most of the time goes into parsing the sources."""
    assert [f"{path}:{line}: {advice}" for path in TESTS for line, advice in faults(text_of(path), tree_of(path))] == []


def test_a_fault_of_each_kind_is_found() -> None:
    lines = [
        "async def test():",
        "    began = time.monotonic()",
        "    assert time.monotonic() - began < 5  # found",
        "    assert created <= time.time()  # found",
        "    wait_until(seen, 'it')",
        "    assert rig.ready() == 200  # found",
        "    process.wait(30)  # found",
        "    httpx.get(url)  # found",
        "    Options(lease_seconds=0.5)  # found",
    ]
    text = "\n".join(lines)
    expected = [number for number, line in enumerate(lines, 1) if line.endswith("# found")]
    assert sorted(line for line, _ in faults(text, ast.parse(text))) == expected


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        ("wait_until(lambda: rig.page(), 'it')\n assert 'x' in rig.output()", True),
        ("await wait_until_async(seen, 'it')\n assert await redis.llen('a') == 3", True),
        ("rig.wait_for_results(ids)\n assert rig.ready() == 200", True),
        ("wait_until(seen, 'it')\n assert x == 1\n assert store.zcard('a') == 3", True),
        ("wait_until(lambda: store.zcard('a'), 'it')\n assert store.zcard('a') == 3", False),
        ("wait_until(seen, 'it')\n assert not store.zcard('a')", False),
        ("wait_until(seen, 'it')\n assert 'x' not in rig.output()", False),
        ("wait_until(seen, 'it')\n assert state()['peak'] <= 2  # does not change any more", False),
        ("wait_until(seen, 'it')\n count = store.zcard('a')\n assert count == 3", True),
        ("assert store.zcard('a') == 3", False),
        ("wait_until(seen, 'it')\n rig.stop()\n assert store.zcard('a') == 3", False),
    ],
)
def test_an_assertion_after_another_wait_is_found(body: str, is_found: bool) -> None:
    text = f"async def test():\n {body}"
    assert bool(list(reads_after_another_wait(text, ast.parse(text)))) is is_found


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("await asyncio.wait_for(work, 10)", True),
        ("await asyncio.wait_for(work, timeout=10)", True),
        ("with asyncio.timeout(5): ...", True),
        ("runner.communicate(timeout=20)", True),
        ("wait_until(ready, 'it', timeout_seconds=5)", True),
        ("process.wait(30)", True),
        ("client.wait(submission, within=20)", True),
        ("urlopen(url, timeout=10)", True),
        ("puller.receive(10, wait_seconds=5)", True),
        ("await wait_until_async(ready, 'it', 5)", True),
        ("await asyncio.wait_for(work, 60)", False),
        ("process.wait(60)", False),
        ("client.wait(submission, within=0.02)", False),
        ("store.wait(1, 5)", False),
        ("with asyncio.timeout(0.01): ...", False),
        ("receiver.wait_for(SPAN, 1)", False),
        ("await asyncio.wait_for(work, IN_TIME)", False),
        ("await asyncio.wait_for(work, SOON)", True),
        ("httpx.get(url)", True),
        ("redis.Redis.from_url(url)", True),
        ("redis.from_url(url, socket_timeout=60)", False),
        ("httpx.post(url, timeout=5)", True),
        ("httpx.AsyncClient()", True),
        ("httpx.Client(timeout=60)", False),
        ("httpx.AsyncClient(timeout=None)", False),
        ("httpx.AsyncClient(transport=of_the_app)", False),
    ],
)
def test_a_short_wait_is_found(source: str, is_found: bool) -> None:
    body = f"async def test():\n {source}" if "await" in source else source
    tree = ast.parse(f"IN_TIME = 60\nSOON = 20\n{body}")
    assert bool([*short_waits(tree), *default_waits(tree)]) is is_found


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        ("before = await server_time(redis)\n assert before + 600 <= due + 0.001 <= after + 600.002", True),
        ("before = await bench.now()\n assert ends is not None and ends >= before + LEASE", True),
        ("before = await self._now()\n assert before <= due", True),
        ("started = int(time.time())\n assert started <= created <= 5", True),
        ("assert created <= time.time()", True),
        ("before = await bench.now()\n assert before - CLOCK_SET_SECONDS <= due", False),
        ("assert created == pytest.approx(time.time(), abs=60)", False),
        ("deadline = time.time() + 60\n assert score == deadline + 1", False),
        ("deadline = time.time() + 60\n assert 0 < redis.ttl(key(deadline)) <= 120", False),
        ("assert clock.now <= 5", False),
    ],
)
def test_an_exact_comparison_of_times_of_day_is_found(body: str, is_found: bool) -> None:
    assert bool(list(exact_times_of_day(ast.parse(f"async def test():\n {body}")))) is is_found


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        ("assert time.monotonic() - began < 5", True),
        ("took = time.perf_counter() - began\n assert took < LIMIT", True),
        ("first = time.monotonic()\n lasted = now() - first\n assert tries <= lasted + 3", True),
        ("assert rig.cpu_share(4) < 0.05", True),
        ("share = await rig.cpu_share(4)\n assert share < MOST", True),
        ("memory = rig.rss_mb()\n assert rig.rss_mb() < memory + 20", True),
        ("assert process.memory_info().rss - rss < 25_000_000", True),
        ("assert response.elapsed.total_seconds() < 2", True),
        ("assert abs(created - time.time()) < 60", True),
        ("now = time.time()\n assert ends - now == pytest.approx(60, abs=1)", True),
        ("assert redis.ttl('key') == pytest.approx(3600, abs=5)", True),
        ("left = redis.pttl('key')\n assert left == pytest.approx(3600, abs=5)", True),
        ("now = time.time_ns()\n assert scores == [now - 2, now - 1]", False),
        ("assert deadline == started + 60", False),
        ("deadline = time.time() + 60\n assert score == deadline + 1", False),
        ("assert redis.pexpiretime('key') == deadline * 1000", False),
        ("assert 'elapsed 5 s' in page", False),
        ("assert 0 < redis.ttl('key') <= 120", False),
        ("assert gateway.calls == 3", False),
    ],
)
def test_a_comparison_with_measured_time_is_found(body: str, is_found: bool) -> None:
    assert bool(list(speed_comparisons(ast.parse(f"def test():\n {body}")))) is is_found


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("Options(lease_seconds=0.5)", True),
        ("Options(lease_seconds=LEASE)", True),
        ("open_rig(LEASE_SECONDS='3')", True),
        ("{'lease_seconds': 2}", True),
        ("{'RESULT_TTL_SECONDS': '1'}", True),
        ("def poller(name, lease_seconds=0.2): ...", True),
        ("def poller(name, *, lease_seconds=0.2): ...", True),
        ("Options(lease_seconds=2)  # the test ends this lease", False),
        ("Options(lease_seconds=30)", False),
        ("Options(lease_seconds=given)", False),
        ("Options(lease_seconds=0)", False),
        ("Options(refresh_seconds=0.1)", False),
    ],
)
def test_a_short_lease_is_found(source: str, is_found: bool) -> None:
    text = f"LEASE = 0.5\n{source}"
    assert bool(list(short_leases(text, ast.parse(text)))) is is_found
