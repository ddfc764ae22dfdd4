"""What a program tells the one that it starts to take its place: a variable in its environment."""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping, Sequence

import attrs

VARIABLE = "TRIOSERVER_HANDOVER"


@attrs.frozen
class Handover:
    """What is handed over.

    Attributes:
      parent: the process that does so.
      ready: the descriptor on which it waits for its successor to be ready.
      sockets: the descriptors of listening sockets, and their names.
    """

    parent: int
    ready: int
    sockets: Sequence[tuple[int, str]]

    def put_into(self, environment: MutableMapping[str, str]) -> None:
        """Tell a program that is started with this environment."""
        environment[VARIABLE] = json.dumps(attrs.asdict(self))

    @classmethod
    def to_us(cls, environment: MutableMapping[str, str]) -> Handover | None:
        """What this process was told, by the one that has started it; the variable is taken out.

        Whose descriptors close from now on when this program starts another one.

        Raises:
          ValueError: a descriptor is not open.
        """
        text = environment.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            told = cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            message = f"{VARIABLE} is {text!r}; what a program tells its successor was expected"
            raise ValueError(message) from error
        if told.parent != os.getppid():
            return None  # it was for a parent of ours, which has passed its environment on
        for number in (told.ready, *(number for number, _ in told.sockets)):
            try:
                os.set_inheritable(number, False)
            except OSError as error:
                message = f"{VARIABLE}: descriptor {number} is not open, as it should be"
                raise ValueError(message) from error
        return told

    def descriptors(self) -> Sequence[int]:
        """All that the successor has to have, by the numbers that they have here."""
        return [self.ready, *(number for number, _ in self.sockets)]
