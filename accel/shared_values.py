"""SharedValue: an instance attribute that several accelerations set to the same value."""

from __future__ import annotations

import weakref
from typing import Any

MISSING = object()


class Hold:
    """One acceleration's share in a value; dropping it gives the share back."""

    __slots__ = ("__weakref__", "shared")

    def __init__(self, shared: SharedValue) -> None:
        self.shared = shared


class SharedValue:
    """`vars(owner)[name]`, ours while anybody holds it; then what was there comes back.

    Pipelines that share a model may so be disabled in any order, or dropped.
    """

    _known: weakref.WeakKeyDictionary[Any, dict[str, SharedValue]] = weakref.WeakKeyDictionary()

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self.name, self.value = weakref.ref(owner), name, value
        self._before = vars(owner).get(name, MISSING)
        self._holds: weakref.WeakSet[Hold] = weakref.WeakSet()
        vars(owner)[name] = value

    @property
    def owner(self) -> Any:
        return self._owner()

    @classmethod
    def hold(cls, owner: Any, name: str, value: Any) -> Hold:
        """Set the value, or join those who did; the hold must be kept."""
        known = cls._known.setdefault(owner, {})
        shared = known.get(name)
        if shared is None or shared.overwritten or shared.value is not value:
            shared = known[name] = cls(owner, name, value)
        hold = Hold(shared)
        shared._holds.add(hold)
        weakref.finalize(hold, shared.tidy).atexit = False
        return hold

    @property
    def overwritten(self) -> bool:
        """Whether somebody has put another value on top of ours."""
        return self.owner is not None and vars(self.owner).get(self.name) is not self.value

    def release(self, hold: Hold) -> None:
        self._holds.discard(hold)
        self.tidy()

    def tidy(self) -> None:
        """Put back what was there, once nobody holds the value."""
        owner = self.owner
        known = self._known.get(owner) if owner is not None else None
        if owner is None or list(self._holds) or known is None or known.get(self.name) is not self:
            return
        del known[self.name]
        if vars(owner).get(self.name) is not self.value:
            return
        if self._before is MISSING:
            del vars(owner)[self.name]
        else:
            vars(owner)[self.name] = self._before
