"""Clients of a program in another process, who come one after the other: each a thread.

It brings what the tests have for such programs, too.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

sys.path.append(str(Path(__file__).resolve().parents[1]))

from support import plain_client
from support.running_programs import heard

CLIENTS = 50


@attrs.define
class Crowd:
    """Clients, each a thread, and what came of their visits."""

    address: Any
    outcomes: Counter[str] = attrs.field(factory=Counter)
    is_over: bool = False

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """They come as long as the block lasts."""
        threads = [threading.Thread(target=self._visit) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.is_over = True
            for thread in threads:
                thread.join()

    def _visit(self) -> None:
        while not self.is_over:
            try:
                with plain_client(self.address) as client:
                    client.sendall(b"hello\n")
                    heard(client, b"hello\n")
            except (OSError, AssertionError, ValueError) as error:
                self.outcomes[type(error).__name__] += 1
            else:
                self.outcomes["answered"] += 1
            time.sleep(0.005)
