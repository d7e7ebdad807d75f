"""What may be wrong, told to the one who can act.

    AsyncProcessorError
    ├── InvalidRequest      the client's: a request that no attempt could ever answer
    ├── InvalidEvent        the sender's: a delivery that is no CloudEvent or no push
    └── InvalidSetting      the operator's: a configuration that must not start

Rooms add their own below `AsyncProcessorError` where they raise them.
"""

from __future__ import annotations


class AsyncProcessorError(Exception):
    """Any error of this product that is meant to be read by a person."""


class InvalidRequest(AsyncProcessorError):
    """A request that breaks the contract; becomes a final `INVALID_REQUEST` result.

    `field` is the path of the field (`deadline`, `metadata.userid`, or `body` for the whole), `found`
    describes what was there (its type or size, never its content), `accepted` what would do.
    `request_id`, `request_token`, `result_queue_name` and `payload_ref` are what could still be read, else empty.
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
    """A delivery whose frame (CloudEvent, push body) cannot be read; `field` names the part."""

    def __init__(self, field: str, *, found: str, accepted: str) -> None:
        super().__init__(f"{field}: expected {accepted}, got {found}")
        self.field = field
        self.found = found
        self.accepted = accepted


class InvalidSetting(AsyncProcessorError):
    """A setting that stops the start; `setting` is the variable or the path in the file."""

    def __init__(self, setting: str, *, found: str, accepted: str) -> None:
        super().__init__(f"{setting}: expected {accepted}, got {found}")
        self.setting = setting
        self.found = found
        self.accepted = accepted
