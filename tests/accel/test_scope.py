"""Scopes: which run is going on, in which thread."""

import contextvars
import threading

from accel.patch import Scope, active, active_key
from tests.probes import Running


def test_scopes_nest_and_come_back():
    with Running("a"):
        with Running("b"):
            assert active_key() == "b"
        assert active_key() == "a"
    assert active_key() is None


def test_a_scope_ended_from_another_thread_is_dead_here():
    outer = Scope("a", None)
    inner = Scope("b", outer)

    def here():
        active.set(inner)
        ending = threading.Thread(target=setattr, args=(inner, "live", False))
        ending.start()
        ending.join()
        assert active_key() == "a"
        outer.live = False
        assert active_key() is None

    contextvars.copy_context().run(here)


def test_another_thread_sees_no_run():
    seen = []
    with Running("a"):
        thread = threading.Thread(target=lambda: seen.append(active_key()))
        thread.start()
        thread.join()
        assert active_key() == "a"
    assert seen == [None]
