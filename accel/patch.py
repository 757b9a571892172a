"""PatchStack: the only code here that alters objects we do not own, and gives them back exactly.

Everything is intercepted at a *slot*: one instance attribute of one object. A module's slot is
`_compiled_call_impl`, which `torch.nn.Module.__call__` consults before anything else; it survives
the hooks of offloading, and `deepcopy` and pickle drop it. A slot is shared by every pipeline that
is accelerated and picks the chain of handlers by the run that is going on, so that pipelines which
share a denoiser may be disabled in any order.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from .shared_values import Hold, SharedValue

CALL = "_compiled_call_impl"


@dataclass(eq=False)
class Scope:
    """The extent of one run: slots dispatch to `key`'s handlers while it is live.

    A scope may be ended from another thread (by the garbage collector, say), which cannot reset
    this thread's context variable; hence `live`, and the way back to the scope outside.
    """

    key: Hashable
    outer: Scope | None
    live: bool = True


active: ContextVar[Scope | None] = ContextVar("accel_active", default=None)
"""The scope of the run going on in this thread."""


def active_key() -> Hashable | None:
    """The acceleration whose run is going on in this thread, or None."""
    scope = active.get()
    while scope is not None and not scope.live:
        scope = scope.outer
    return None if scope is None else scope.key


Handler = Callable[..., Any]
"""`handler(call, *args, **kwargs)`, where `call` goes on to what the handler wraps."""


class PatchConflict(RuntimeError):
    """Somebody else has patched an attribute on top of ours."""


class Chain:
    """The handlers of one acceleration at one slot; the first added is outermost."""

    def __init__(self, base: Callable[..., Any]) -> None:
        self._base = self.call = base
        self.handlers: list[tuple[Handler, str]] = []

    def add(self, handler: Handler, label: str) -> None:
        self.handlers.append((handler, label))
        self.call = self.over(self._base)

    def over(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, wrapped by every handler."""
        for handler, label in reversed(self.handlers):
            call = _link(handler, call, label)
        return call


class Slot:
    """One interception point: `vars(owner)[name]`, with a chain of handlers per acceleration.

    Chains are held by their stacks, and so by their pipelines: a pipeline that is dropped takes
    its chains along, also out of a denoiser that others go on using.
    """

    def __init__(self, owner: Any, name: str, always: bool) -> None:
        self._owner = weakref.ref(owner)  # not held: a deep copy of it shares our function
        self.name, self.always = name, always
        self.chains: weakref.WeakValueDictionary[Hashable, Chain] = weakref.WeakValueDictionary()
        current = vars(owner).get(name)
        stale = getattr(current, "__accel_slot__", None)  # a deep copy carries its original's
        self.present = name in vars(owner) and stale is None
        self.before = current if self.present else None
        self._function = self._entry(type(owner))

    @property
    def owner(self) -> Any:
        return self._owner()

    def _entry(self, kind: type) -> Callable[..., Any]:
        slot = self
        if self.name == CALL:

            def enter(*args: Any, **kwargs: Any) -> Any:
                chain = slot.chains.get(active_key())
                return (slot.base if chain is None else chain.call)(*args, **kwargs)

            enter.__accel_slot__ = slot  # type: ignore[attr-defined]
            return enter

        original = getattr(kind, self.name)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self is not slot.owner:  # a deep copy, which must run plain
                return original(self, *args, **kwargs)
            if slot.always:
                call = slot.base
                for each in slot.chains.values():
                    call = each.over(call)
                return call(*args, **kwargs)
            chain = slot.chains.get(active_key())
            return (slot.base if chain is None else chain.call)(*args, **kwargs)

        method.__accel_slot__ = slot  # type: ignore[attr-defined]
        return method

    def put(self) -> None:
        """Set our function in its place."""
        bound = self.name != CALL
        placed = types.MethodType(self._function, self.owner) if bound else self._function
        vars(self.owner)[self.name] = placed

    def base(self, *args: Any, **kwargs: Any) -> Any:
        """Call what was there before us."""
        if self.before is not None:
            return self.before(*args, **kwargs)
        if self.name == CALL:
            return self.owner._call_impl(*args, **kwargs)
        return getattr(type(self.owner), self.name)(self.owner, *args, **kwargs)

    @classmethod
    def of(cls, owner: Any, name: str) -> Slot | None:
        """The slot now in place at `owner.name`, if there is one and it is this owner's own."""
        slot = getattr(vars(owner).get(name), "__accel_slot__", None)
        return slot if slot is not None and slot.owner is owner else None

    def in_place(self) -> bool:
        return self.owner is not None and Slot.of(self.owner, self.name) is self

    def add(self, key: Hashable, handler: Handler, label: str) -> Chain:
        """Add a handler; the chain that is returned lives as long as the caller keeps it."""
        chain = self.chains.get(key)
        if chain is None:
            chain = self.chains[key] = Chain(self.base)
            weakref.finalize(chain, _tidy, weakref.ref(self)).atexit = False
        chain.add(handler, label)
        if not self.in_place():
            self.put()
        return chain

    def remove(self, key: Hashable) -> None:
        self.chains.pop(key, None)
        self.tidy()

    def tidy(self) -> None:
        """Give the place back if nobody needs it any more."""
        if list(self.chains.values()) or not self.in_place():
            return
        if self.present:
            vars(self.owner)[self.name] = self.before
        else:
            del vars(self.owner)[self.name]

    def retake(self) -> None:
        """Take the place back after `module.compile()` has overwritten it; keep what it made."""
        self.present = self.name in vars(self.owner)
        self.before = vars(self.owner).get(self.name)
        self.put()


def _tidy(slot: weakref.ref[Slot]) -> None:
    if (alive := slot()) is not None:
        alive.tidy()


def _link(handler: Handler, call: Callable[..., Any], label: str) -> Callable[..., Any]:
    def linked(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(call, *args, **kwargs)
        except Exception as error:
            note = f"accel: {label}"
            if hasattr(error, "add_note") and note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise

    return linked


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether calling `module` runs a compiled graph, in which inner slots are not seen."""
    slot = Slot.of(module, CALL)
    inside = vars(module).get(CALL) if slot is None else slot.before
    return inside is not None or hasattr(module, "_orig_mod")


class PatchStack:
    """What one acceleration has changed, undone last in, first out."""

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self._slots: dict[Slot, Chain] = {}
        self._values: list[tuple[Any, str, bool, Any, Any, bool]] = []
        self._shared: list[Hold] = []

    def call(self, module: torch.nn.Module, handler: Handler, label: str) -> None:
        """Wrap calls of `module` during this acceleration's runs. The first added is outermost."""
        self._join(module, CALL, handler, label, always=False)

    def method(
        self, owner: Any, name: str, handler: Handler, label: str, always: bool = False
    ) -> None:
        """Wrap the bound method `owner.name`; `always` also outside of this acceleration's runs."""
        self._join(owner, name, handler, label, always)

    def _join(self, owner: Any, name: str, handler: Handler, label: str, always: bool) -> None:
        slot = Slot.of(owner, name) or Slot(owner, name, always)
        self._slots[slot] = slot.add(self.key, handler, label)

    def set(self, owner: Any, name: str, value: Any, yields: bool = False) -> None:
        """Set the instance attribute `owner.name`; with `yields`, what is set later stays."""
        own = vars(owner)
        self._values.append((owner, name, name in own, own.get(name), value, yields))
        own[name] = value

    def share(self, owner: Any, name: str, value: Any) -> None:
        """Set the instance attribute `owner.name` together with other accelerations."""
        self._shared.append(SharedValue.hold(owner, name, value))

    def release(self, owner: Any, name: str) -> None:
        """Undo the slot at `owner.name` alone (a scheduler that was swapped for another)."""
        for slot in [s for s in self._slots if s.owner is owner and s.name == name]:
            slot.remove(self.key)
            del self._slots[slot]

    def adopt(self) -> None:
        """Before a run: take back call slots that `compile()` has overwritten since."""
        for slot, chain in list(self._slots.items()):
            if slot.name != CALL or slot.owner is None or slot.in_place():
                continue
            if Slot.of(slot.owner, CALL) is None:
                slot.retake()
                continue
            slot.remove(self.key)  # another acceleration came after the overwriting: join it
            del self._slots[slot]
            for handler, label in chain.handlers:
                self.call(slot.owner, handler, label)

    def bypassed(self, root: torch.nn.Module) -> list[str]:
        """Names of wrapped modules inside `root` that lie in a compiled module."""
        names = {module: name for name, module in root.named_modules()}
        compiled = [name for module, name in names.items() if is_compiled(module)]
        hooked = [names[s.owner] for s in self._slots if s.name == CALL and s.owner in names]
        return [n for n in hooked if n and any(n.startswith(f"{c}.") or not c for c in compiled)]

    def undo(self) -> None:
        """Give everything back.

        Raises:
            PatchConflict: somebody patched on top of us; nothing is undone then. A call slot
                overwritten by `compile()` is no conflict: it is left as compiled.
        """
        for owner, name, _, _, value, yields in self._values:
            if vars(owner).get(name) is not value and not yields:
                raise PatchConflict(self._conflict(owner, name))
        for hold in self._shared:
            if hold.shared.overwritten:
                raise PatchConflict(self._conflict(hold.shared.owner, hold.shared.name))
        for slot in self._slots:
            if slot.name != CALL and slot.owner is not None and not slot.in_place():
                raise PatchConflict(self._conflict(slot.owner, slot.name))
        while self._values:
            owner, name, present, before, value, _ = self._values.pop()
            if vars(owner).get(name) is value:
                vars(owner)[name] = before
                if not present:
                    del vars(owner)[name]
        while self._shared:
            hold = self._shared.pop()
            hold.shared.release(hold)
        while self._slots:
            slot, _ = self._slots.popitem()
            slot.remove(self.key)

    @staticmethod
    def _conflict(owner: Any, name: str) -> str:
        return (
            f"{type(owner).__name__}.{name} was patched by somebody else after acceleration was "
            f"enabled; undo that patch first, then disable acceleration"
        )
