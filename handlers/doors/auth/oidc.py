"""Verify the OIDC token of a push, before its body is read.

A token is accepted if Google signed it (RS256 only) for our audience and the configured service account, and if it has
not expired. PyJWT parses it and checks the signature. Sources: Pub/Sub's "authenticate push subscriptions", OpenID
Connect Core 3.1.3.7.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import InvalidSignatureError, PyJWS, PyJWTError

from handlers.contract.errors import InvalidSetting
from handlers.contract.lenient_json import MALFORMED
from handlers.contract.masked_text import shown_value
from handlers.doors.auth.bearer import bearer_token
from handlers.doors.auth.google_keys import KeysUnavailable, SigningKeys, SigningKeysOptions
from handlers.doors.door import Refusal

ISSUERS: Final = frozenset({"https://accounts.google.com", "accounts.google.com"})

_MALFORMED: Final = Refusal(401, "malformed token")
_ALGORITHM: Final = Refusal(401, "token is not signed with RS256")
_UNKNOWN_KEY: Final = Refusal(401, "token is signed with an unknown key")
_SIGNATURE: Final = Refusal(401, "wrong signature")
_CLAIMS: Final = Refusal(401, "claims missing or of another type")
_ISSUER: Final = Refusal(401, "wrong issuer")
_AUDIENCE: Final = Refusal(401, "wrong audience")
_TOO_EARLY: Final = Refusal(401, "token is not valid yet")
_EXPIRED: Final = Refusal(401, "token expired")
_EMAIL: Final = Refusal(403, "token of another account")
_UNVERIFIED: Final = Refusal(403, "e-mail of the token is not verified")

_REMEMBERED_SECONDS: Final = 3_600.0


class PushIdentityOptions(msgspec.Struct, frozen=True):
    """The expected identity of the caller.

    `audience` must match exactly. `skew_seconds` is the tolerated difference of clocks. At most `most_remembered`
    accepted tokens are remembered.
    """

    audience: str = ""
    service_account_email: str = ""
    skew_seconds: float = 60.0
    most_remembered: int = 1_024
    keys: SigningKeysOptions = SigningKeysOptions()

    def __post_init__(self) -> None:
        if not self.audience:
            raise InvalidSetting("PUSH_AUDIENCE", found="nothing", accepted=f"the subscription's audience{_OR_NONE}")
        if "@" not in self.service_account_email:
            found = shown_value(self.service_account_email) if self.service_account_email else "nothing"
            accepted = f"the e-mail of the account that pushes{_OR_NONE}"
            raise InvalidSetting("PUSH_SERVICE_ACCOUNT", found=found, accepted=accepted)


_OR_NONE: Final = "; or PUSH_AUTH=none to accept pushes of any caller"


class _Claims(msgspec.Struct):
    iss: str
    aud: str
    iat: float
    exp: float
    email: str = ""
    email_verified: bool = False
    nbf: float | None = None


_SHAPE: Final = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Three parts of base64url without padding (RFC 7515, 7.1). Python's decoder would skip other characters."""

_ALGORITHMS: Final = ["RS256"]
_jws = PyJWS(algorithms=_ALGORITHMS)
_claims_decoder = msgspec.json.Decoder(_Claims)


class PushIdentity:
    """Checks the callers of one push door. `clock` returns Unix seconds.

    Pub/Sub sends the same token for up to an hour. So the digests of accepted tokens are kept until the tokens expire,
    and a check costs one hash. Refused tokens are not kept, because callers could fill the memory with them.
    """

    def __init__(
        self,
        options: PushIdentityOptions,
        keys: SigningKeys | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._keys = keys or SigningKeys(options.keys)
        self._clock = clock
        self._accepted_until: dict[bytes, float] = {}

    def start(self) -> None:
        """Start to fetch the signing keys, on the running event loop."""
        self._keys.start()

    async def close(self) -> None:
        """Cancel a running fetch."""
        await self._keys.close()

    async def check(self, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        """The refusal, or None if the caller is accepted. Never raises for a caller's input.

        Header names are in lower case.
        """
        token = bearer_token(headers)
        if isinstance(token, Refusal):
            return token
        digest = hashlib.sha256(token).digest()
        until = self._accepted_until.get(digest)
        if until is not None and self._clock() < until:
            return None
        verdict = await self._verify(token)
        if isinstance(verdict, Refusal):
            self._accepted_until.pop(digest, None)
            return verdict
        self._remember(digest, verdict.exp)
        return None

    async def _verify(self, token: bytes) -> _Claims | Refusal:
        payload = await self._signed_payload(token)
        if isinstance(payload, Refusal):
            return payload
        try:
            claims = _claims_decoder.decode(payload)
        except MALFORMED:
            return _CLAIMS
        return self._check_claims(claims) or claims

    async def _signed_payload(self, token: bytes) -> bytes | Refusal:
        """The claims as JSON, once their signature is verified."""
        if _SHAPE.fullmatch(token) is None:
            return _MALFORMED
        try:
            header = _jws.get_unverified_header(token)
        except PyJWTError:
            return _MALFORMED
        key = await self._key(header)
        if isinstance(key, Refusal):
            return key
        try:
            payload: bytes = _jws.decode(token, key, algorithms=_ALGORITHMS)
        except InvalidSignatureError:
            return _SIGNATURE
        except PyJWTError:
            return _MALFORMED
        return payload

    async def _key(self, header: Mapping[str, Any]) -> RSAPublicKey | Refusal:
        """The key that a header names. The algorithm is fixed (RFC 8725, 3.1)."""
        if header.get("alg") not in _ALGORITHMS or "crit" in header or "b64" in header:
            return _ALGORITHM
        if not header.get("kid"):
            return _UNKNOWN_KEY
        try:
            key = await self._keys.key(header["kid"])
        except KeysUnavailable as error:
            return Refusal(503, str(error))
        return key or _UNKNOWN_KEY

    def _check_claims(self, claims: _Claims) -> Refusal | None:
        now, skew = self._clock(), self._options.skew_seconds
        rules = (
            (claims.iss in ISSUERS, _ISSUER),
            (claims.aud == self._options.audience, _AUDIENCE),
            (max(claims.iat, claims.nbf or 0) <= now + skew, _TOO_EARLY),
            (now < claims.exp + skew, _EXPIRED),
            (claims.email == self._options.service_account_email, _EMAIL),
            (claims.email_verified, _UNVERIFIED),
        )
        return next((refusal for is_kept, refusal in rules if not is_kept), None)

    def _remember(self, digest: bytes, exp: float) -> None:
        now = self._clock()
        most = self._options.most_remembered
        if len(self._accepted_until) >= most:
            self._accepted_until = {d: until for d, until in self._accepted_until.items() if until > now}
        if len(self._accepted_until) >= most:
            self._accepted_until.pop(next(iter(self._accepted_until)))  # the token that was added first
        self._accepted_until[digest] = min(exp + self._options.skew_seconds, now + _REMEMBERED_SECONDS)
