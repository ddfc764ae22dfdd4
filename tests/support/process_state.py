"""What the system says of a process."""

from pathlib import Path


def state_of(pid):
    """The state of a process, and its parent; ``"X", 0`` of one that is gone.

    A process that ends between the opening of the file and its reading is told by ESRCH, and not
    by ENOENT (proc(5)).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    state, parent, *_ = stat.rpartition(")")[2].split()
    return state, int(parent)


def is_running(pid):
    """Whether a process runs; not, once it waits to be reaped."""
    return state_of(pid)[0] not in {"Z", "X"}


def children_of(pid):
    """The processes that a process has started, and that run."""
    pids = [int(it.name) for it in Path("/proc").iterdir() if it.name.isdecimal()]
    return {it for it in pids if state_of(it)[1] == pid and is_running(it)}
