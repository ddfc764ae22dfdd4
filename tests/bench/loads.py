"""The loads that servers are compared under, by name."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A load, and the service it needs."""

    load: str
    """The load generator's mode and options."""
    service: Literal["line", "bulk", "datagram"] = "line"
    unix: bool = False
    figure: Literal["ops_s", "MB_s", "ops_cpu_s"] = "ops_s"
    """What the peers are compared by."""
    tls: bool = False


SCENARIOS = {
    "pingpong-c1": Scenario("pingpong -c 1 -n 32"),
    "pingpong-c50": Scenario("pingpong -c 50 -n 32"),
    "pingpong-c500": Scenario("pingpong -c 500 -n 32"),
    "pingpong-4k": Scenario("pingpong -c 50 -n 4096"),
    "pingpong-unix": Scenario("pingpong -c 50 -n 32", unix=True),
    "pipeline-d32": Scenario("pipeline -c 10 -d 32 -n 32"),
    "connect-c1": Scenario("connect -c 1 -n 32 --close eof"),
    "connect-c2": Scenario("connect -c 2 -n 32 --close eof"),
    "connect-c8": Scenario("connect -c 8 -n 32 --close eof"),
    "connect-c32": Scenario("connect -c 32 -n 32 --close eof"),
    "connect-fin": Scenario("connect -c 32 -n 32 --close fin"),
    "tls-pingpong-c50": Scenario("pingpong -c 50 -n 32", figure="ops_cpu_s", tls=True),
    "tls-connect-c32": Scenario("connect -c 32 -n 32", figure="ops_cpu_s", tls=True),
    "udp-w64": Scenario("udp -c 4 -d 16 -n 64", service="datagram"),
    "udp-w1": Scenario("udp -c 1 -d 1 -n 64", service="datagram"),
    "bulk-c4": Scenario("bulk -c 4", service="bulk", figure="MB_s"),
}
