"""Exceptions of the product, grouped by the person who must act.

    AsyncProcessorError
    ├── InvalidRequest      for the client: the request can never be answered
    ├── InvalidEvent        for the sender: the delivery is not a CloudEvent or push
    └── InvalidSetting      for the operator: the configuration is wrong and nothing starts

Packages define further subclasses of `AsyncProcessorError` beside the code that raises them.
"""

from __future__ import annotations

from collections.abc import Sequence


class AsyncProcessorError(Exception):
    """Base class of errors with a message for people."""


class InvalidRequest(AsyncProcessorError):
    """A request that breaks the contract; it ends as an `INVALID_REQUEST` result.

    `field` is the path of the field, such as `deadline` or `metadata.userid`, or `body` for the whole. `found`
    describes the value by type or size, never by content. `accepted` describes valid values. `request_id`,
    `request_token`, `result_queue_name` and `payload_ref` are empty if they cannot be read.
    """

    def __init__(
        self,
        field: str,
        *,
        found: str,
        accepted: str,
        request_id: str = "",
        request_token: str = "",
        result_queue_name: str = "",
        payload_ref: str = "",
    ) -> None:
        super().__init__(f"{field}: expected {accepted}, got {found}")
        self.field = field
        self.found = found
        self.accepted = accepted
        self.request_id = request_id
        self.request_token = request_token
        self.result_queue_name = result_queue_name
        self.payload_ref = payload_ref


class InvalidEvent(AsyncProcessorError):
    """A CloudEvent or push body that cannot be read; `field` names the part."""

    def __init__(self, field: str, *, found: str, accepted: str) -> None:
        super().__init__(f"{field}: expected {accepted}, got {found}")
        self.field = field
        self.found = found
        self.accepted = accepted


class InvalidSetting(AsyncProcessorError):
    """An invalid setting, which stops the start.

    `setting` is the variable, or the path of the field in `CONFIG_FILE`. `others` are further invalid settings that
    were found together with this one.
    """

    def __init__(self, setting: str, *, found: str, accepted: str) -> None:
        super().__init__(f"{setting}: expected {accepted}, got {found}")
        self.setting = setting
        self.found = found
        self.accepted = accepted
        self.others: tuple[InvalidSetting, ...] = ()


def raise_all(faults: Sequence[InvalidSetting]) -> None:
    """Raise the first fault, with the others attached; does nothing without a fault."""
    flat = [one for fault in faults for one in (fault, *fault.others)]
    if flat:
        flat[0].others = tuple(flat[1:])
        raise flat[0]
