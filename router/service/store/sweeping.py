"""A thread that tries again and again to remove the last of what was deleted, while the service answers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from router.service.store.errors import FeedbackStoreError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0

log = structlog.get_logger()


class Sweeper:
    """Calls a function until it says that there is nothing left to do; idle until it is woken.

    Parameters
    ----------
    sweep
        Whether all is done; asked to stop, it returns soon.
    """

    def __init__(self, sweep: Callable[[], bool]) -> None:
        self._sweep = sweep
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._again = False
        self.stopping = threading.Event()

    def wake(self, wait_s: float = _FIRST_WAIT_S) -> None:
        """Sweep after a time, in a thread of its own."""
        with self._lock:
            self._again = True
            if self._thread is None and not self.stopping.is_set():
                self._thread = threading.Thread(target=self._run, args=(wait_s,), name="sweep", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread, whatever is left to do."""
        self.stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, wait_s: float) -> None:
        while not self.stopping.wait(wait_s):
            with self._lock:
                self._again = False
            done = False
            try:
                done = self._sweep()
            except FeedbackStoreError as error:
                log.warning("what was erased could not be swept, and will be tried again", reason=str(error))
            except Exception:  # a defect: it is told, and what is left is swept at the next start
                log.exception("what was erased could not be swept")
                done = True
            with self._lock:
                if done and not self._again:
                    self._thread = None
                    return
            wait_s = _FIRST_WAIT_S if done else min(2 * wait_s, _LONGEST_WAIT_S)
