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
SHORT_SENTENCES = [
    *("README.md", "SECURITY.md", "docs/architecture.md", "docs/observability.md", "docs/results.md"),
]


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
    found = {
        str(path): missing(found for text in docstrings(path) for found in PATH.findall(text))
        for path in SOURCES
    }
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


@pytest.mark.parametrize("name", SHORT_SENTENCES)
def test_no_sentence_is_longer_than_thirty_words(name: str) -> None:
    sentences = [
        sentence
        for paragraph in prose(document(Path(name)))
        for sentence in re.split(r"(?<=[.:;?!])\s+", paragraph)
    ]
    assert [sentence for sentence in sentences if len(sentence.split()) > LONGEST_SENTENCE] == []
