"""Documents and docstrings name files, links and anchors that exist; sentences of the documents are short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_structure import ROOT, SOURCES, tracked, tree_of

DOCUMENTS = tracked("*.md")
TOP_FOLDERS = ("async_processor", "docs", "handlers", "keda", "knative", "monitoring", "tests")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(TOP_FOLDERS)})/[\w./*-]*\w(?:/|\.\w+)?")
LONGEST_SENTENCE = 30


def document(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def prose(text: str) -> Iterator[str]:
    """Paragraphs and list items of a page, without code blocks and tables."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:- |\d+\. |#))", text):
        yield " ".join(paragraph.split())


def missing(paths: Iterator[str]) -> list[str]:
    """Paths, relative to the root, that name nothing; `*` stands for any name."""
    return [path for path in paths if not (ROOT / path).exists() and not any(ROOT.glob(path.rstrip("/")))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_every_path_in_a_document_exists(path: Path) -> None:
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", document(path), flags=re.M | re.S))
    assert missing(found for text in inline if "<" not in text for found in PATH.findall(text)) == []


def test_every_file_in_the_drawing_of_the_request_path_exists() -> None:
    """Paths in drawings are relative to `handlers/`; a name without a folder is in the folder of the path before it."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", document(Path("docs/architecture.md")), flags=re.M | re.S)
    drawings = "".join(text for language, text in blocks if not language)
    found = re.findall(r"(?:[a-z_]+/)*[a-z_]+\.(?:py|lua)\b", drawings)
    folder = Path()
    paths = []
    for name in found:
        folder = Path(name).parent if "/" in name else folder
        paths.append(f"handlers/{folder / Path(name).name}")
    assert len(paths) > 15
    assert missing(iter(paths)) == []


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_every_path_in_a_docstring_exists() -> None:
    found = {str(path): missing(found for text in docstrings(path) for found in PATH.findall(text)) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", document(path), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (ROOT / path).parent / name if name else ROOT / path
        if not to.exists() or (anchor and anchor not in anchors(to.resolve().relative_to(ROOT))):
            broken.append(target)
    assert broken == []


CLAIM_SECTIONS = ("Who can do what", "What one client can cost")
WITHOUT_TEST = "[below](#what-a-shared-redis-cannot-separate)"


def _claims(text: str) -> list[str]:
    """Rows of the tables in these sections, without their heads."""
    sections = re.split(r"^## ", text, flags=re.M)
    rows = [
        line
        for section in sections
        if section.startswith(CLAIM_SECTIONS)
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    return [row for row in rows if not row.endswith("| test |")]


def _is_tested(row: str) -> bool:
    last = row.strip("|").split("|")[-1]
    tests = re.findall(r"`(tests/[^`]+\.py)`", last)
    has_tests = all("def test_" in (ROOT / name).read_text(encoding="utf-8") for name in tests)
    return WITHOUT_TEST in last if not tests else has_tests


def test_every_claim_of_security_names_its_tests() -> None:
    rows = _claims(document(Path("SECURITY.md")))
    assert len(rows) > 40
    assert [row for row in rows if not _is_tested(row)] == []


@pytest.mark.parametrize(
    ("row", "is_tested"),
    [
        ("| a | b | `tests/test_documents.py` |", True),
        ("| a | b | `tests/waiting.py` |", False),
        ("| a | b `tests/test_documents.py` | |", False),
        ("| a | b | fixed |", False),
    ],
)
def test_a_claim_without_a_test_is_found(row: str, is_tested: bool) -> None:
    assert _is_tested(row) == is_tested


KEDA, SERVING, CLOUD = "needs KEDA", "needs Knative Serving", "needs Google Cloud"
SHOWN = {
    "keda/README.md": {
        "no poller starts, the queue grows": KEDA,
        "`NOAUTH` or `WRONGPASS` in KEDA's log": "test_missing_and_wrong_passwords_give_the_errors_of_the_table",
        "`WRONGTYPE` in the poller's log, `ERR unsupported key type` in KEDA's": (
            "test_a_queue_of_another_type_is_named_in_the_log_of_the_poller"
        ),
        "KEDA still fails after the password was corrected": KEDA,
        "one poller never stops although nothing is queued": ("test_a_user_without_llen_fails_on_empty_queues_only"),
        "`retry` with `reason=handler_unavailable` in the poller's log": (
            "test_a_door_that_is_not_ready_is_in_the_pollers_log"
        ),
        "`handler refused the poller` with `status=401` in the poller's log": (
            "test_a_handler_that_refuses_the_poller_is_in_the_pollers_log"
        ),
        "the same with `status=404`": "test_a_handler_that_refuses_the_poller_is_in_the_pollers_log",
        "apply is refused: `expected 0 <= 600 <= 300`": SERVING,
        "pollers start and stop every few minutes": "test_a_longer_cooldown_keeps_the_poller_in_a_pause",
        "a poller keeps running although nothing is pending": (
            "test_retries_and_claims_keep_one_poller_until_their_deadlines"
        ),
        "KEDA starts pollers while the pool is full": (
            "tests/manifests/test_keda_decisions.py: test_slack_aware_starts_a_poller_only_for_idle_capacity"
        ),
        "the status page reports that Redis does not answer": (
            "test_the_status_page_names_the_password_that_it_lacks, "
            "test_a_port_that_is_closed_to_the_status_page_is_named, "
            "test_the_status_page_gets_the_ca_of_components_below_it_only"
        ),
        "a setting has no effect": "test_check_prints_the_value_that_won",
    },
    "knative/README.md": {
        "Service not ready, `RevisionMissing`": ("test_the_last_line_of_a_door_that_does_not_start_names_the_setting"),
        "`ConfigurationError`, a field is not allowed": SERVING,
        "image cannot be resolved": SERVING,
        "every push gets 401": "test_pushes_with_another_audience_get_401",
        "403 on Cloud Run": CLOUD,
        "no push arrives": "test_a_publish_without_the_grant_is_a_403_in_the_log_of_the_push_door",
        "pushes arrive, but no result is published; the log has 403": (
            "test_a_publish_without_the_grant_is_a_403_in_the_log_of_the_push_door"
        ),
        "a request is delivered again after 600 s": "test_a_request_longer_than_the_ack_deadline_runs_twice_at_once",
        "nothing is delivered for minutes after errors": CLOUD,
        "apply is refused: `expected 0 <= 600 <= 300`": SERVING,
        "504 after 300 s": SERVING,
        "`kubectl diff` fails: service account not found": "test_the_account_can_be_applied_before_the_door",
        "a patch emptied the container": ("test_a_strategic_merge_patch_of_a_knative_service_empties_its_container"),
    },
    "docs/architecture.md": {
        "the poller crashes while a request is in flight": (
            "tests/manifests/test_keda_rehearsal.py: test_claims_of_crashed_pollers_start_a_new_one"
        ),
        "the poller crashes after the ack": (
            "tests/chaos/test_crash_points.py: test_f3_a_crash_at_any_named_point_loses_and_duplicates_nothing"
        ),
        "the reply to an ack is lost": (
            "tests/way/test_failing_redis.py: "
            "test_connections_that_are_cut_at_any_moment_cost_no_result_and_no_second_one"
        ),
        "Redis is down between answer and ack": (
            "tests/poller/test_ack_batcher.py: test_while_redis_does_not_answer_no_settlement_is_dropped"
        ),
        "Redis is down between answer and ack, and the lease expires meanwhile": (
            "tests/poller/test_ack_batcher.py: test_a_settlement_of_a_stale_owner_is_refused_and_reported"
        ),
        "a handler crashes": (
            "tests/poller/test_dispatcher.py: test_a_connection_lost_during_the_request_counts_as_an_attempt"
        ),
    },
    "docs/runbook.md": {
        "Requests are queued and nothing moves": (
            "tests/monitoring/test_files.py: "
            "test_each_alert_fires_for_its_reason_alone, "
            "tests/cli/test_check.py: test_a_user_without_the_right_to_write_results_gets_an_error"
        ),
        "A gate is closed": (
            "tests/status/test_page.py: test_the_first_page_shows_queues_gates_and_failures, "
            "tests/cli/test_top.py: test_headings_are_whole_and_a_gate_without_budget_is_closed"
        ),
        "A gate has no reading": (
            "tests/gates/metric/test_prometheus_gates.py: test_a_missing_metric_is_reported_and_on_missing_holds"
        ),
        "Requests expire": (
            "tests/way/test_redis_way.py: test_a_request_that_expires_in_the_queue_gets_deadline_exceeded"
        ),
        "The gateway fails or answers 429": (
            "tests/way/test_failing_gateway.py: "
            "test_a_failing_gateway_gets_only_probes_and_all_requests_when_it_is_back"
        ),
        "One request has no result": (
            "tests/way/test_where.py: test_a_request_waits_for_its_retry_then_it_is_cancelled, "
            "tests/way/test_where.py: test_a_finished_request_is_found_with_its_result_and_without_it"
        ),
        "Dead letters": (
            "tests/way/test_redis_way.py: test_a_request_without_an_id_is_dead_lettered, "
            "tests/cli/test_dead.py: test_requeue_and_drop_take_several_or_all"
        ),
        "Leases are lost, requests run twice": (
            "tests/poller/test_maintenance.py: test_the_work_of_a_claim_taken_over_by_another_poller_is_cancelled"
        ),
        "Redis is full, slow or gone": (
            "tests/way/test_failing_redis.py: test_while_redis_fails_nothing_is_lost_and_no_socket_leaks"
        ),
        "Handlers are not reached, callers are refused": (
            "test_a_door_that_is_not_ready_is_in_the_pollers_log, "
            "test_a_handler_that_refuses_the_poller_is_in_the_pollers_log, "
            "test_pushes_with_another_audience_get_401"
        ),
        "Results cannot be published": ("tests/doors/test_recorder.py: test_an_unrecorded_result_counts_as_a_nack"),
        "A changed configuration file is refused": (
            "tests/way/test_reload.py: test_an_invalid_file_is_refused_and_reported_and_the_next_valid_one_is_applied"
        ),
    },
}
"""For each row of a table of symptoms or failures, and each section of the runbook: the tests that show it.

Or what it takes to show it. A test without a file is in `tests/manifests/test_troubleshooting.py`.
"""


def rows(path: Path) -> list[str]:
    """The first cells of the tables of symptoms or failures in a page, and its numbered headings."""
    tables = re.findall(r"^\| (?:symptom|failure) \|.*\n\|[-|]+\n((?:\|.*\n?)+)", document(path), re.M)
    cells = [line.split(" | ")[0].removeprefix("| ") for table in tables for line in table.splitlines()]
    return cells + re.findall(r"^## \d+\. (.+)$", document(path), re.M)


def test_every_row_of_a_troubleshooting_table_has_a_test_or_a_requirement() -> None:
    found = {str(path): rows(path) for path in DOCUMENTS if rows(path)}
    assert found == {path: [*shown] for path, shown in SHOWN.items()}


@pytest.mark.parametrize(
    "name", [name for page in SHOWN.values() for text in page.values() for name in text.split(", ")]
)
def test_a_test_that_shows_a_row_exists(name: str) -> None:
    if name in (KEDA, SERVING, CLOUD):
        return
    file, _, test = name.rpartition(": ")
    assert f"def {test}(" in (ROOT / (file or "tests/manifests/test_troubleshooting.py")).read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_no_sentence_is_longer_than_thirty_words(path: Path) -> None:
    sentences = [
        sentence for paragraph in prose(document(path)) for sentence in re.split(r"(?<=[.:;?!])\s+", paragraph)
    ]
    assert [sentence for sentence in sentences if len(sentence.split()) > LONGEST_SENTENCE] == []
