"""The bounded buffer between the process that makes cases and those that train on them.

The buffer decides how long one waits, never what one gets: a case that is requested and not held is made (again), and
the same number of the same epoch is always the same case.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from maisi_aug.integrations.fresh.schedule import UseSchedule


class Key(NamedTuple):
    """Key of a case that is drawn during training: epoch, and number within it."""

    epoch: int
    number: int


class CaseBuffer:
    """Buffer of cases that are drawn during training, which also decides which case to draw next."""

    def __init__(self, schedule: UseSchedule, capacity: int) -> None:
        """Begin with nothing.

        Args:
            schedule: Which case each item is.
            capacity: Most cases that are held.
        """
        self.schedule, self.capacity = schedule, capacity
        self._held: OrderedDict[Key, Any] = OrderedDict()
        self._asked: OrderedDict[Key, int] = OrderedDict()
        self._uses: Counter[Key] = Counter()
        self._epoch, self._next = 0, Key(0, 0)
        self._failure: BaseException | None = None
        self._is_closed = False
        self._changed = threading.Condition()

    def take(self, epoch: int, item: int) -> Any:
        """Return the case of an item of an epoch, waiting until it is drawn.

        Args:
            epoch: Number of the epoch, from 0.
            item: Number of the item in the epoch, from 0.

        Raises:
            Exception: The error that ended the drawing of cases.
            EOFError: The buffer was closed.
        """
        key = Key(epoch, self.schedule.cases_of(epoch)[item])
        with self._changed:
            self._follow(key)
            self._asked[key] = self._asked.get(key, 0) + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: key in self._held or self._failure is not None or self._is_closed)
            self._asked[key] -= 1
            if not self._asked[key]:
                del self._asked[key]
            if key not in self._held:
                raise self._failure or EOFError("the buffer was closed")
            self._uses[key] += 1
            self._held.move_to_end(key)
            case = self._held[key]
            if self._is_spent(key):
                del self._held[key]
            self._changed.notify_all()
            return case

    def make_all(self, make: Callable[[int, int], Any]) -> None:
        """Draw cases until the buffer is closed or a case fails; waiting callers then get the error."""
        try:
            while (key := self._choose()) is not None:
                case = make(key.epoch, key.number)
                with self._changed:
                    self._make_room()
                    self._held[key] = case
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            raise

    def close(self) -> None:
        """Stop drawing cases, and release waiting callers."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _choose(self) -> Key | None:
        """The case to make next: one that is waited for, else the next ahead while there is room; None at the end."""
        with self._changed:
            while not self._is_closed:
                for key in self._asked:
                    if key not in self._held:
                        return key
                if len(self._held) < self.capacity:
                    return self._advance()
                self._changed.wait()
        return None

    def _advance(self) -> Key:
        """The next case in the order of first use; the next epoch's follow this one's."""
        key = self._next
        while key in self._held or self._is_spent(key):
            key = self._after(key)
        self._next = self._after(key)
        return key

    def _after(self, key: Key) -> Key:
        is_last = key.number + 1 >= len(self.schedule.uses_of(key.epoch))
        return Key(key.epoch + 1, 0) if is_last else Key(key.epoch, key.number + 1)

    def _follow(self, key: Key) -> None:
        """Go over to the epoch of a case, and forget the uses of others; a used-up case may be used up again."""
        if key.epoch != self._epoch:
            self._epoch = key.epoch
            self._uses = Counter({used: count for used, count in self._uses.items() if used.epoch == key.epoch})
            if self._next.epoch != key.epoch:
                self._next = Key(key.epoch, 0)
        if self._is_spent(key):
            self._uses[key] = 0

    def _is_spent(self, key: Key) -> bool:
        return self._uses[key] >= self.schedule.uses_of(key.epoch)[key.number]

    def _make_room(self) -> None:
        """Drop the least recently used case for which no caller is waiting."""
        while len(self._held) >= self.capacity:
            for key in self._held:
                if key not in self._asked:
                    del self._held[key]
                    break
            else:
                return
