"""The server of `trioserver_stream`, with a recorder that notes scopes, too."""

from functools import partial

import trio
from trioserver_recorded import recorded

if __name__ == "__main__":
    trio.run(partial(recorded, scopes=True))
