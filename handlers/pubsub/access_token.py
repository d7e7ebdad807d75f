"""The bearer token for Google's services, kept until shortly before it ends.

`google-auth` finds the account by itself, as every program on Google's platform does: from the environment
(`GOOGLE_APPLICATION_CREDENTIALS`, `CLOUDSDK_CONFIG`), else the metadata server (GKE Workload Identity, Cloud
Run). It blocks, so it runs in a thread; and it is imported there, since that takes 0.2 s, which neither the
start nor the emulator needs.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC
from typing import Any, Final

from handlers.pubsub.errors import PubSubError

SCOPE: Final = "https://www.googleapis.com/auth/pubsub"
_RENEWED_BEFORE_SECONDS: Final = 300.0
_REQUEST_TIMEOUT_SECONDS: Final = 10.0
_ACCEPTED: Final = (
    "a credentials file named by GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login` "
    "or a workload identity"
)
_LIFETIME_SECONDS: Final = 3600.0
"""Of tokens that do not say: Google's usual."""


class NoAccessToken(PubSubError):
    """Google gave no token, or no account was found to ask for one."""


class AccessToken:
    """Tokens of the account that this process runs as."""

    def __init__(self) -> None:
        self._credentials: Any = None
        self._token = ""
        self._ends_at = 0.0
        self._renewal: asyncio.Future[None] | None = None

    async def get(self) -> str:
        """The token. Raises `NoAccessToken`; an old token is used up to its end while renewing fails."""
        now = time.time()
        if now >= self._ends_at - _RENEWED_BEFORE_SECONDS:
            try:
                # Shielded: one caller's timeout must not take the token from the others.
                await asyncio.shield(self._renew())
            except NoAccessToken:
                if now >= self._ends_at:
                    raise
        return self._token

    def _renew(self) -> asyncio.Future[None]:
        """The renewal under way, or a new one."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.ensure_future(asyncio.to_thread(self._renew_in_thread))
            self._renewal.add_done_callback(_seen)
        return self._renewal

    def _renew_in_thread(self) -> None:
        import google.auth  # noqa: PLC0415  # see the module's docstring
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415  # as above
        from google.auth.transport.requests import Request  # noqa: PLC0415  # as above

        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=[SCOPE])
            self._credentials.refresh(_with_timeout(Request()))
        except (GoogleAuthError, OSError, ValueError) as error:
            found = f"{type(error).__name__}: {_first_line(error)}"
            raise NoAccessToken(f"no access token ({found}); accepted are {_ACCEPTED}") from error
        expiry = self._credentials.expiry  # naive, in UTC
        self._token = str(self._credentials.token)
        self._ends_at = expiry.replace(tzinfo=UTC).timestamp() if expiry else time.time() + _LIFETIME_SECONDS


def _seen(renewal: asyncio.Future[None]) -> None:
    """Look at the failure of a renewal whose callers have gone, so that asyncio does not warn."""
    if not renewal.cancelled():
        renewal.exception()


def _with_timeout(request: Any) -> Any:
    """google-auth's default is 120 s."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return request(*args, **{"timeout": _REQUEST_TIMEOUT_SECONDS, **kwargs})

    return call


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
