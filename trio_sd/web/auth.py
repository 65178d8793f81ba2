"""Who asks: users with passwords of which only bcrypt hashes are known, and bearers of tokens.

To check a password takes as long as its hash says, by intent, so it is done in a thread, and not again for one that was
right before. What is remembered of that one is a keyed digest, whose key never leaves this object. Of tokens only
SHA-256 sums are known; that is enough, because a token is long and random, and nobody can guess one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

import bcrypt
import trio

__all__ = ["Authenticator"]

_THREADS: Final = 2
_WAITING: Final = 50  # checks
_REMEMBERED: Final = 1_000
_LONGEST: Final = 72  # bytes of a password; bcrypt takes no notice of others


class Authenticator:
    """Checks ``Authorization`` fields.

    Args:
      users: bcrypt hashes by user.
      tokens: SHA-256 sums.
    """

    def __init__(self, users: Mapping[str, bytes], tokens: Iterable[bytes] = ()) -> None:
        self._users = dict(users)
        self._tokens = tuple(tokens)
        # Somebody who is not known takes as long as somebody who is.
        rounds = max((int(hashed[4:6]) for hashed in self._users.values()), default=4)
        self._nobody = bcrypt.gensalt(rounds) + b"." * 31  # no password has this hash that anybody could find
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, None] = {}  # digests, the oldest first
        self._limiter = trio.CapacityLimiter(_THREADS)

    def __repr__(self) -> str:
        return f"<Authenticator of {len(self._users)} users and {len(self._tokens)} tokens>"

    @property
    def has_users(self) -> bool:
        """Whether there are users, and not tokens only."""
        return bool(self._users)

    @property
    def busy(self) -> bool:
        """Whether so many wait for a check that nobody else should."""
        return self._limiter.statistics().tasks_waiting >= _WAITING

    async def check(self, header: str) -> bool:
        """Tell whether an ``Authorization`` field names a user with the right password, or holds a token.

        Cancelled, the thread's work is finished and thrown away.
        """
        found = _credentials(header)
        if found is None:
            return self._is_token(header)
        if not self._users:
            return False
        user, password = found
        hashed = self._users.get(user, self._nobody)
        digest = hmac.digest(self._key, b"\0".join([hashed, user.encode(), password]), hashlib.sha256)
        if digest in self._right:
            return True
        matches = await trio.to_thread.run_sync(
            _matches, password, hashed, limiter=self._limiter, abandon_on_cancel=True
        )
        if not (matches and user in self._users):
            return False
        self._right[digest] = None
        if len(self._right) > _REMEMBERED:
            del self._right[next(iter(self._right))]
        return True

    def _is_token(self, header: str) -> bool:
        scheme, _, token = header.partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()  # the bytes that were sent
        # All of them, so that the time tells nothing.
        same = [hmac.compare_digest(digest, known) for known in self._tokens]
        return scheme.lower() == "bearer" and any(same)


def _credentials(header: str) -> tuple[str, bytes] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode("utf-8"), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _matches(password: bytes, hashed: bytes) -> bool:
    usable = len(password) <= _LONGEST and b"\0" not in password
    return bcrypt.checkpw(password if usable else b"", hashed) and usable
