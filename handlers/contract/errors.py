"""Exceptions of the product, grouped by the person who must act.

    AsyncProcessorError
    ├── InvalidRequest      for the client: the request can never be answered
    ├── InvalidEvent        for the sender: the delivery is not a CloudEvent or push
    └── InvalidSetting      for the operator: the configuration is wrong and nothing starts

Packages define further subclasses of `AsyncProcessorError` beside the code that raises them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final


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


_LONGEST_NAME: Final = 64
"""Characters; CloudEvents recommends at most 20."""


class InvalidEvent(AsyncProcessorError):
    """A CloudEvent or push body that cannot be read.

    `field` names the part. An attribute whose name is empty or long is just `attribute`: the sender chooses the name.
    """

    def __init__(self, field: str, *, found: str, accepted: str) -> None:
        self.field = field if 0 < len(field) <= _LONGEST_NAME else "attribute"
        super().__init__(f"{self.field}: expected {accepted}, got {found}")
        self.found = found
        self.accepted = accepted


class InvalidSetting(AsyncProcessorError):
    """An invalid setting, which stops the start.

    `setting` is the variable, or the path of the field in `CONFIG_FILE`. If its name is probably misspelt, `meant` is
    the path that was probably meant; that setting then has no value. `others` are further invalid settings. `place` is
    the setting, with the file that sets it if there are several files.
    """

    def __init__(self, setting: str, *, found: str, accepted: str, meant: str = "") -> None:
        super().__init__(f"{setting}: expected {accepted}, got {found}")
        self.setting = setting
        self.place = setting
        self.found = found
        self.accepted = accepted
        self.meant = meant
        self.others: tuple[InvalidSetting, ...] = ()

    def put_at(self, place: str) -> None:
        """Name the place in the text, instead of the setting."""
        self.place = place
        self.args = (f"{place}: expected {self.accepted}, got {self.found}",)


class SettingFaults:
    """Collects invalid settings, to report all of them at once.

    A check that reads a faulty setting would only report a consequence of its fault, so it is skipped (`touch`).
    """

    def __init__(self) -> None:
        self.found: list[InvalidSetting] = []
        self._touched: set[str] = set()
        self.place_of: Callable[[str], str] = str
        """The place of a setting, see `InvalidSetting.place`."""

    def add(self, fault: InvalidSetting) -> None:
        """Record the fault and its `others`, but each faulty setting once."""
        for one in (fault, *fault.others):
            place = self.place_of(one.setting)
            if place != one.setting:
                one.put_at(place)
            is_new = one.setting not in self._touched or one.setting == "CONFIG_FILE"  # it may name several files
            if is_new and str(one) not in [str(known) for known in self.found]:
                self.found.append(one)
            self.hide(one.setting, one.meant)

    def hide(self, *settings: str) -> None:
        """Treat these settings as faulty from now on."""
        self._touched |= {setting for setting in settings if setting}

    def touch(self, *settings: str) -> bool:
        """Whether one of these settings or a related path is faulty.

        Related are the paths above and below it; `CONFIG_FILE` is above all its fields.
        """
        return any(
            _is_at_or_above(known, setting) or _is_at_or_above(setting, known)
            for known in self._touched
            for setting in settings
        )

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Record an `InvalidSetting` that the block raises; execution continues after the block."""
        try:
            yield
        except InvalidSetting as fault:
            self.add(fault)

    def raise_all(self) -> None:
        """Raise the first fault with the others attached. Does nothing without a fault."""
        if self.found:
            first, *others = self.found
            first.others = tuple(others)
            raise first


def _is_at_or_above(above: str, below: str) -> bool:
    is_of_file = below[:1].islower()
    return above == below or below.startswith((f"{above}.", f"{above}[")) or (above == "CONFIG_FILE" and is_of_file)
