"""What `sweep` does to a scenario after each of its steps.

They come between two steps of its tasks, as if from outside. A function of the `Trial`
is a fault, too.

* It must not close a Trio socket: that may raise in whatever task is current.
* It cannot throw `trio.Cancelled`: only scopes can.
"""

from __future__ import annotations

import signal
import threading
from typing import ClassVar

import attrs

from .trial import Trial


@attrs.frozen
class Cancel:
    """Cancel the trial's scope: the whole scenario, unless it has set one in ``arm``."""

    def __call__(self, trial: Trial) -> None:
        trial.scope.cancel(reason="a fault of the sweep")


@attrs.frozen
class ShutDown:
    """Shut the trial's server down.

    Args:
      grace: seconds that requests have to end; None: the server's own.
    """

    grace: float | None = None

    def __call__(self, trial: Trial) -> None:
        if trial.server is None:
            raise RuntimeError("there is no server to shut down: trial.arm(server=...)")
        trial.server.shutdown(self.grace)


@attrs.frozen
class CtrlC:
    """What the terminal sends; `KeyboardInterrupt` has to come out of the scenario."""

    raises: ClassVar[type[BaseException]] = KeyboardInterrupt

    def __call__(self, trial: Trial) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Ctrl-C strikes in the main thread alone: sweep there")
        signal.raise_signal(signal.SIGINT)


@attrs.frozen
class ResetClient:
    """Have the trial's client vanish: its connection is reset."""

    def __call__(self, trial: Trial) -> None:
        if trial.client is None:
            raise RuntimeError("there is no client to reset: trial.arm(client=...)")
        trial.client.reset()
