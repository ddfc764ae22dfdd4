"""Who the client of a request is: what connections and datagrams say of it alike."""

from __future__ import annotations

from .._facts.address import Address
from .._facts.events import RequestInfo
from .._sockets.transport import DatagramTransport, PeerCredentials, Transport
from .any_request import Fate


class OfClient(Fate):
    """What every request knows of its client, and of the address that the client has asked."""

    info: RequestInfo
    _transport: Transport | DatagramTransport

    @property
    def client_address(self) -> Address:
        """The client's address, as kept from the accept.

        That of a Unix client whose socket has no name is ``""``.
        """
        return self.info.client_address

    @property
    def server_address(self) -> Address:
        """The address that the client has asked, which is the listener's.

        Of a datagram to a wildcard it is the very one of those, where the system tells.
        """
        return self.info.server_address

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """The process at the other end of a Unix socket; None where the system does not tell."""
        return self._transport.peer_credentials

    def user_id(self) -> int | None:
        """The user id at the other end of a Unix socket; None where it cannot be told."""
        credentials = self.peer_credentials
        return None if credentials is None else credentials.uid
