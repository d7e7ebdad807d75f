"""How many bytes a poller holds at a time: requests that were claimed, answers that are not stored yet.

A count of requests is no bound, since one request or answer may have ten million bytes. Each kind has its own share:
were they one, requests could take all of it, and no answer would have the room to be read and stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class ByteShare:
    """Bytes of one kind, at most `limit`; a single item passes whatever its size, when nothing else is held."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: deque[Wish] = deque()

    def room(self) -> int:
        """Bytes that may be taken now."""
        return max(0, self.limit - self.held)

    def has_room(self, size: int) -> bool:
        """Whether an item of `size` bytes may be taken now."""
        return not self._waiting and (self.held == 0 or size <= self.limit - self.held)

    def give(self, size: int) -> None:
        """`size` bytes are no longer held (below 0: more are); those who wait for room get it in their order."""
        self.held -= size
        while self._waiting and (self.held == 0 or self._waiting[0].size <= self.limit - self.held):
            wish = self._waiting.popleft()
            self.held += wish.size
            wish.is_granted = True
            wish.on_granted()

    def ask(self, size: int, on_granted: Callable[[], None]) -> Wish:
        """Take `size` bytes now (the wish is granted), or call `on_granted` once they are taken."""
        wish = Wish(size, on_granted)
        if self.has_room(size):
            self.held += size
            wish.is_granted = True
        else:
            self._waiting.append(wish)
        return wish

    def withdraw(self, wish: Wish) -> None:
        """Wait no longer for a wish that was not granted."""
        self._waiting.remove(wish)
        self.give(0)  # it may have stood before smaller ones


class Wish:
    """Bytes that somebody waits for."""

    __slots__ = ("is_granted", "on_granted", "size")

    def __init__(self, size: int, on_granted: Callable[[], None]) -> None:
        self.size = size
        self.on_granted = on_granted
        self.is_granted = False


class ByteBudget:
    """The shares of one poller: half of `total` for answers, most of the rest for requests.

    `payloads` are those that were stored apart: who waits for room for one holds its request already.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.answers = ByteShare(total // 2)
        self.payloads = ByteShare(total // 8)
        self.requests = ByteShare(total - self.answers.limit - self.payloads.limit)


class Holding:
    """What one request holds of one share; nothing at first."""

    __slots__ = ("_share", "_size", "_wish")

    def __init__(self, share: ByteShare) -> None:
        self._share = share
        self._size = 0
        self._wish: Wish | None = None

    def ask(self, size: int, on_granted: Callable[[], None]) -> bool:
        """Hold at most `size` bytes: True where there is room, else `on_granted` is called once there is."""
        self.hold(0)
        wish = self._share.ask(size, on_granted)
        self._wish = wish
        return wish.is_granted

    def hold(self, size: int) -> None:
        """Hold `size` bytes from now on, whether there is room or not; what was asked for is given back."""
        wish, self._wish = self._wish, None
        before = self._size
        if wish is not None and wish.is_granted:
            before += wish.size
        elif wish is not None:
            self._share.withdraw(wish)
        self._size = size
        self._share.give(before - size)


class HeldBytes:
    """What one request holds of a budget, from its claim until its settlement is stored."""

    __slots__ = ("answer", "payload", "request")

    def __init__(self, budget: ByteBudget, request_bytes: int) -> None:
        self.request = Holding(budget.requests)
        self.payload = Holding(budget.payloads)
        self.answer = Holding(budget.answers)
        self.request.hold(request_bytes)

    def is_settled_with(self, size: int) -> None:
        """The outcome is known, and what will be stored of it has `size` bytes."""
        self.payload.hold(0)
        self.answer.hold(size)

    def release(self) -> None:
        """Nothing is held any more."""
        self.is_settled_with(0)
        self.request.hold(0)
