"""Several machines behind a balancer: the files are good, and their numbers fit together.

Each program reads its own file. The numbers are read out of the files, and compared.
"""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from support.installed import where_is
from support.pages import EXAMPLES, page
from support.scenes import table

import trioserver
from trioserver import Timeouts
from trioserver._cli.commands import parser
from trioserver._cli.values import seconds
from trioserver._modes.processes.server.ending import SOON

FLEET = EXAMPLES / "fleet"
HANDLER = EXAMPLES / "systemd"
MODULES = Path("/usr/lib/nginx/modules")

START_TIMEOUT = inspect.signature(trioserver.run).parameters["start_timeout"].default


# The programs' own opinion ---------------------------------------------------------------


def says(name, packages, *arguments):
    """A program's status and what it says; a test without it is skipped, but in CI it fails."""
    is_complete = "stream" not in packages or MODULES.exists()
    path = where_is(name, packages, is_complete=is_complete)
    command = [path, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_haproxy():
    """HAProxy has nothing to say against its configuration, not even a warning."""
    status, said = says("haproxy", "haproxy", "-c", "-dW", "-f", FLEET / "haproxy.cfg")
    assert (status, re.findall(r"WARNING.*|ALERT.*", said)) == (0, [])


def test_nginx(tmp_path):
    """Nginx has nothing to say against its configuration, not even a warning."""
    (tmp_path / "modules").symlink_to(MODULES)
    text = (FLEET / "nginx.conf").read_text()
    # It opens what it would listen on, which is nobody else's.
    elsewhere = text.replace("listen 9999;", f"listen unix:{tmp_path}/socket;")
    assert elsewhere != text
    (tmp_path / "nginx.conf").write_text(elsewhere)
    places = ["-p", tmp_path, "-c", tmp_path / "nginx.conf", "-g", f"pid {tmp_path}/pid;"]
    status, said = says("nginx", "nginx-light libnginx-mod-stream", "-t", "-e", "stderr", *places)
    assert (status, re.findall(r"\[(?:warn|alert|emerg)\].*", said)) == (0, [])


def test_units(tmp_path):
    """The service manager has nothing to say against the units."""
    script = Path(sys.exec_prefix) / "bin" / "trioserver"
    for unit in ("upper.service", "upper.socket"):
        text = (FLEET / unit).read_text()
        installed = text.replace("/opt/upper/venv/bin/trioserver", str(script))
        (tmp_path / unit).write_text(installed.replace("/opt/upper", str(HANDLER)))
    verify = ["verify", "--man=no", tmp_path / "upper.service", tmp_path / "upper.socket"]
    status, said = says("systemd-analyze", "systemd", *verify)
    assert (status, [line for line in said.splitlines() if "upper." in line]) == (0, [])


def test_manifest():
    """Everything in the manifest is in the schema of Kubernetes, and nothing else is there."""
    newest = kubernetes_validate.latest_version()
    for resource in resources().values():
        kubernetes_validate.validate(resource, newest, strict=True)
    assert sorted(resources()) == ["Deployment", "PodDisruptionBudget", "Service"]


# What stands in the files ----------------------------------------------------------------


def statements(name):
    """A configuration without its comments."""
    return re.sub(r"(?m)(?:^|\s)#.*$", "", (FLEET / name).read_text())


def after(text, words):
    """What follows these words, which stand there once."""
    (found,) = re.findall(rf"(?<!\S){words}[ =]([^\s;]+)", text)
    return found


def resources():
    """The manifest's resources, by kind."""
    return {it["kind"]: it for it in yaml.safe_load_all(statements("kubernetes.yaml"))}


def pod():
    """What the deployment says of a pod."""
    return resources()["Deployment"]["spec"]["template"]["spec"]


def container():
    """The only one of a pod."""
    (found,) = pod()["containers"]
    return found


def unit():
    """The service unit, its continued lines joined."""
    return re.sub(r"\\\n\s*", "", statements("upper.service"))


def options(kind):
    """What the command line says, in the unit or in the manifest."""
    if kind == "unit":
        _, *words = shlex.split(re.search(r"(?m)^ExecStart=(.*)", unit())[1])
    else:
        _, *words = container()["command"]
    return parser().parse_args(words)


def cleanup(given):
    """Seconds of the clean-up."""
    return Timeouts().cleanup if given.timeout_cleanup is None else given.timeout_cleanup


def idle(given):
    """Seconds that a quiet client may stay."""
    return Timeouts().idle if given.timeout_idle is None else given.timeout_idle


def asked(kind):
    """How many seconds lie between two checks, and how many have to fail."""
    if kind == "unit":
        text = statements("haproxy.cfg")
        return seconds(after(text, "inter")), int(after(text, "fall"))
    return probe("readiness")


def probe(name):
    """The same of a probe."""
    found = container()[f"{name}Probe"]
    return found["periodSeconds"], found["failureThreshold"]


def killed(kind):
    """After how many seconds a program that has been told to end is killed."""
    if kind == "unit":
        return int(after(unit(), "TimeoutStopSec"))
    return pod()["terminationGracePeriodSeconds"]


def patience():
    """After how many quiet seconds a balancer closes a connection."""
    haproxy, nginx = statements("haproxy.cfg"), statements("nginx.conf")
    said = [after(haproxy, "timeout client"), after(haproxy, "timeout server")]
    return [*map(seconds, [*said, after(nginx, "proxy_timeout")])]


def servers(name):
    """Where a balancer sends clients."""
    return re.findall(r"(?m)^ *server (?:[a-z]+ )?([\d.]+:\d+)", statements(name))


# The rules ---------------------------------------------------------------------------------

KINDS = {"machines behind HAProxy": "unit", "pods": "pod"}


@table("kind", KINDS)
def test_balancer_notices_in_time(kind):
    """Nobody is sent any more when the drain begins."""
    period, threshold = asked(kind)
    assert period * threshold + period <= options(kind).ready_off


@table("kind", KINDS)
def test_nobody_is_killed_in_a_drain(kind):
    """A program has ended by its own bounds before it is killed."""
    given = options(kind)
    assert given.ready_off + given.grace + cleanup(given) + SOON < killed(kind)


def test_who_ends_a_quiet_connection():
    """It is the server, by its own bound, and no balancer before it."""
    assert len(patience()) == 3
    assert idle(options("unit")) < min(patience())


def test_whoever_is_sent_is_served():
    """A balancer keeps for itself the clients for whom a machine has no slots."""
    total = options("unit").total_requests
    assert int(after(statements("haproxy.cfg"), "maxconn")) <= total
    found = re.findall(r"max_conns=(\d+)", statements("nginx.conf"))
    assert len(found) == 3
    assert max(map(int, found)) <= total


def test_slow_start_is_no_failure():
    """A pod has the time that its workers have to get ready."""
    period, threshold = probe("startup")
    assert options("pod").start_timeout is None
    assert period * threshold > START_TIMEOUT


def test_workers_have_processors():
    """There are as many workers as the limit of a pod allows processors."""
    assert options("pod").workers == int(container()["resources"]["limits"]["cpu"])


# The files together --------------------------------------------------------------------------


def test_places():
    """Balancers, units and probes speak of the same machines and ports."""
    (port,) = {one.partition(":")[2] for one in servers("haproxy.cfg")}
    assert servers("haproxy.cfg") == servers("nginx.conf")
    assert len(set(servers("haproxy.cfg"))) == resources()["Deployment"]["spec"]["replicas"] == 3
    socket = statements("upper.socket")
    assert after(socket, "ListenStream") == port
    (bind,) = options("unit").bind
    assert bind.inherited == after(socket, "FileDescriptorName")
    assert int(after(statements("haproxy.cfg"), "check port")) == options("unit").health[1]
    ports = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert ports == {"upper": int(port), "health": options("pod").health[1]}
    assert {after(statements("haproxy.cfg"), "httpchk GET")} == {
        container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness")
    }


def test_who_the_client_is():
    """Who gets a PROXY header believes it, and who gets none wants none."""
    assert " send-proxy-v2" in statements("haproxy.cfg")
    assert after(statements("nginx.conf"), "proxy_protocol") == "on"
    assert options("unit").proxy_protocol
    assert options("pod").proxy_protocol is None


def test_drain_is_left_to_the_server():
    """A balancer that finds a machine not ready closes none of its connections."""
    assert "on-marked-down" not in statements("haproxy.cfg")


def noticed(kind):
    """The sum of what a balancer takes to notice."""
    period, threshold = asked(kind)
    return f"{period:g} s x {threshold} + {period:g} s = {period * (threshold + 1):g} s"


def stopped(kind):
    """The sum of what a program takes to end."""
    given = options(kind)
    parts = given.ready_off, given.grace, cleanup(given)
    return f"{' + '.join(f'{part:g} s' for part in parts)} = {sum(parts):g} s"


def test_numbers_in_the_table():
    """They are those of the files."""
    shown = (FLEET / "README.md").read_text()
    for kind in KINDS.values():
        ready_off = f"{options(kind).ready_off:g} s"
        assert f"{noticed(kind)} | at most `--ready-off`, {ready_off} |" in shown
        stop = re.escape(stopped(kind))
        assert re.search(rf"{stop} \| less than .*, {killed(kind)} s \|", shown)
    (longest,) = set(patience())
    assert re.search(rf"{idle(options('unit')):g} s \| less than .*, {longest:g} s \|", shown)
    total = options("unit").total_requests
    assert f"{total} | at most `--total-requests`, {total} |" in shown
    period, threshold = probe("startup")
    assert f"{period} s x {threshold} = {period * threshold} s |" in shown
    assert f"{START_TIMEOUT:g} s | less than the startup probe" in shown


def test_numbers_on_the_page():
    """They are those of the files, whatever runs them."""
    shown = " ".join(page("how-to/fleet").split())
    haproxy = statements("haproxy.cfg")
    rise, slowly = int(after(haproxy, "rise")), seconds(after(haproxy, "slowstart"))
    keepalive = {name: after(haproxy, f"srvtcpka-{name}") for name in ("idle", "intvl", "cnt")}
    found = seconds(keepalive["idle"]) + seconds(keepalive["intvl"]) * int(keepalive["cnt"])
    assert f"for idle connections, in {found:g} s;" in shown
    for kind in KINDS.values():
        given = options(kind)
        period, threshold = asked(kind)
        for said in (
            noticed(kind),
            stopped(kind),
            f"``--ready-off`` ({given.ready_off:g} s)",
            f"``terminationGracePeriodSeconds`` ({killed(kind)} s)",
            f"``proxy_timeout`` ({max(patience()):g} s)",
            f"``--timeout-idle``, {idle(given):g} s.",
            f"After {period * threshold:g} s, at most,",
            f"After {given.ready_off:g} s (``--ready-off``)",
            f"{given.grace:g} s later (``--grace``)",
            f"has {cleanup(given):g} s to clean up",
            f"sent there, {period * rise:g} s, and",
            f"grows for {slowly:g} s (``slowstart``)",
        ):
            assert said in shown
