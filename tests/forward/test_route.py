"""F74: an endpoint is a path below an allowed one, and the host is never the request's to choose."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidRequest
from handlers.forward.route import gateway_url, is_safe_path

BASE = "http://gateway:8080/prefix"
ALLOWED = ("/v1/", "/score")

HOSTILE = [
    *("//evil/x", "http://evil", "https://evil/v1/", "\\\\evil", "/\\evil", "@evil/", ".evil/", ":81/"),
    *("/v1/../../admin", "/v1/..", "/v1/../v1/x", "/v1/./x", "/v1//x", "//v1/x", "/v1/.", "/..", "/."),
    *(
        "/v1/%2e%2e/admin",
        "/v1/%2E%2E",
        "/v1/%2f",
        "/v1/x%00",
        "/v1/x;a=b",
        "/v1/x?a=b",
        "/v1/x#f",
        "/v1/x y",
    ),
    *(
        "/v1/\tx",
        "/v1/x\r\nHost: evil",
        "/v1/x\n",
        "/v1/x\0",
        "\n/v1/x",
        "/v1/é",
        "/v1/\u2024\u2024/x",
        "/v1/\uff0e\uff0e/x",
    ),
    *(
        "/v1/" + "x" * 100_000,
        "v1/x",
        "/V1/x",
        "/v10/x",
        "/v1",
        "/score/x",
        "/scores",
        "/admin",
        "/",
        "*",
        " ",
    ),
    *("/v1/@evil", "/v1/x:81", "/v1/{x}", "/v1/x|y", "/v1/x'y", '/v1/x"y', "/v1/<x>", "/v1/$x", "/v1/x&y"),
]


@pytest.mark.parametrize("endpoint", HOSTILE)
def test_a_hostile_endpoint_is_an_invalid_request(endpoint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        gateway_url(BASE, "/v1/completions", endpoint, ALLOWED, "id-1")
    assert (caught.value.field, caught.value.request_id) == ("endpoint", "id-1")
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("", "/prefix/v1/completions"),
        ("/v1/chat/completions", "/prefix/v1/chat/completions"),
        ("/v1/models/a.b_c~d-e", "/prefix/v1/models/a.b_c~d-e"),
        ("/v1/...", "/prefix/v1/..."),
        ("/v1/x/", "/prefix/v1/x/"),
        ("/score", "/prefix/score"),
    ],
)
def test_a_plain_path_is_joined_to_the_base(endpoint: str, path: str) -> None:
    assert gateway_url(BASE, "/v1/completions", endpoint, ALLOWED, "id") == f"http://gateway:8080{path}"


@pytest.mark.parametrize("base", ["http://g:1", "http://g:1/"])
@pytest.mark.parametrize("path", ["/v1/x", "v1/x"])
def test_base_and_path_are_joined_with_one_slash(base: str, path: str) -> None:
    assert gateway_url(base, path, "", (), "id") == "http://g:1/v1/x"


def test_an_empty_list_allows_no_path() -> None:
    assert not is_safe_path("/v1/completions", ())


PIECES = st.sampled_from(["/", "//", "..", ".", "v1", "%2e", "\\", "@evil", ":", "?", "#", "é", "\n", "x", "-", "~"])


@given(endpoint=st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=30))
def test_every_accepted_endpoint_stays_below_an_allowed_path(endpoint: str) -> None:
    if not is_safe_path("/v1/" + endpoint, ALLOWED):
        return
    parts = urlsplit(gateway_url(BASE, "/p", "/v1/" + endpoint, ALLOWED, "id"))
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("http", "gateway:8080", "", "")
    assert parts.path == "/prefix/v1/" + endpoint
    assert not {".", ".."} & set(parts.path.split("/"))
