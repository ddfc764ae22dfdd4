"""What goes wrong in worker processes, as exceptions of the server."""

from __future__ import annotations


class HandlerFailed(Exception):
    """A handler in a worker process has raised an error.

    Its traceback, which cannot leave its process, is the text of ``__cause__``.
    """


class WorkerCrashed(Exception):
    """A worker process has ended in the middle of a request.

    Attributes:
      pid: its process id.
      status: its exit status; less than 0: the signal that has ended it; 255, too, if
        that cannot be told, as in a program that ignores SIGCHLD.
    """

    def __init__(self, pid: int, status: int) -> None:
        super().__init__(pid, status)
        self.pid = pid
        self.status = status

    def __str__(self) -> str:
        how = f"by signal {-self.status}" if self.status < 0 else f"with exit status {self.status}"
        return f"worker process {self.pid} has ended {how}"


class WorkerStartError(RuntimeError):
    """A worker process could not get ready. The message has its traceback, if it told one."""


class ForkServerGone(WorkerStartError):
    """The fork server has ended instead of starting a worker process."""


class Traceback(Exception):
    """The text of a traceback in another process, to be shown as the cause of an error here."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'
