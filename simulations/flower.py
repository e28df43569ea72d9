"""The ray engine: one run of the Flower App on Flower's own simulation, private from start to end.

`flwr run` alone leaves a SuperLink behind, reuses whatever answers on its port, installs dependencies over ours and
exits 0 when the run failed. So each run gets its own SuperLink on a free port with its own FLWR_HOME, and everything
that it started is gone when `run_on_ray` returns or raises. Written against Flower 1.41; POSIX only.
"""

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_START_SECONDS = 60.0  # a SuperLink is up after about 4
_COMMAND_SECONDS = 60.0  # `flwr list` takes about 3
_STOP_SECONDS = 10.0  # Ray goes in about 5
_CONNECTION = "private"  # the name of our SuperLink in config.toml
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|[\u2500-\u257f]")  # colours, and the boxes that rich draws


@dataclass(frozen=True)
class RunOutcome:
    """How Flower says that a run ended.

    status "finished:completed" says no more than that the ServerApp returned: every client may have failed.
    """

    status: str
    details: str
    log_path: Path


def run_on_ray(
    app_directory: Path,
    run_config: Mapping[str, str | int | float | bool],
    num_clients: int,
    cpus_per_client: int,
    gpus_per_client: float,
    log_directory: Path,
) -> RunOutcome:
    """Run the Flower App in `app_directory` with `num_clients` simulated clients and wait for its end.

    `run_config` overrides [tool.flwr.app.config]; a path in it must be absolute, for the apps run in another directory.
    The streamed log goes to flower.log in `log_directory`, the SuperLink's own to superlink.log beside it.

    Raises RuntimeError, with the last line of the log, if the run could not be started or followed. A run that started
    and failed is an outcome, not an exception.
    """
    log_directory = log_directory.resolve()
    log_directory.mkdir(parents=True, exist_ok=True)
    log_path = log_directory / "flower.log"
    log_path.unlink(missing_ok=True)
    federation = (
        f"num-supernodes={num_clients} "
        f"client-resources-num-cpus={cpus_per_client} client-resources-num-gpus={float(gpus_per_client)}"
    )
    with _Processes() as processes:
        services = _start_services(processes, log_directory / "superlink.log")
        overrides = processes.home / "overrides.toml"
        overrides.write_text(to_toml(run_config), encoding="utf-8")
        arguments = [str(app_directory.resolve()), _CONNECTION, "--stream", "--federation-config", federation]
        submission = processes.start("flwr", ["run", *arguments, "-c", str(overrides)], log_path)
        while submission.poll() is None and all(service.poll() is None for service in services):
            with contextlib.suppress(subprocess.TimeoutExpired):
                submission.wait(timeout=1.0)
        return _outcome(processes, log_path)


def to_toml(run_config: Mapping[str, str | int | float | bool]) -> str:
    """Return the overrides as TOML. `flwr run -c FILE.toml` takes any string; its `key=value` form has no escapes.

    A JSON string or boolean is one of TOML too. Keys are quoted, so that a key with a dot stays one key.
    """
    lines = []
    for key, value in run_config.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
        lines.append(f"{json.dumps(key)} = {text}\n")
    return "".join(lines)


class _Processes:
    """The processes of one run with the temporary FLWR_HOME they share; on leaving, none of them survives.

    Each is started as the leader of its own session and process group, so Ctrl-C reaches this process alone, and what
    the leader starts stays in its group: Flower's simulation and all of Ray in SuperExec's.
    """

    def __init__(self) -> None:
        # Not in $TMPDIR: Ray's sockets lie in here too, and the path of a UNIX socket may have 107 bytes only.
        self.home = Path(tempfile.mkdtemp(prefix="fedmops-", dir="/tmp"))
        self._leaders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._signal(signal.SIGTERM)
            _poll(lambda: not self._living(), _STOP_SECONDS)
        finally:  # also after a second Ctrl-C
            self._signal(signal.SIGKILL)
            if not _poll(lambda: not self._living(), _STOP_SECONDS):
                logger.error("processes of the run survive and must be ended by hand: %s", self._living())
            for leader in self._leaders:  # one that ended a moment ago is a zombie until it is waited for
                with contextlib.suppress(subprocess.TimeoutExpired):
                    leader.wait(timeout=_STOP_SECONDS)
            shutil.rmtree(self.home, ignore_errors=True)

    def start(self, program: str, arguments: list[str], log_path: Path) -> subprocess.Popen[bytes]:
        """Start a program of this Python environment; its output is appended to the log."""
        # In the private home, for Ray puts its working directory before the app on the actors' sys.path.
        with log_path.open("ab") as log:
            leader = subprocess.Popen(
                [Path(sysconfig.get_path("scripts")) / program, *arguments],
                cwd=self.home,
                env=_environment(self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._leaders.append(leader)
        return leader

    def _signal(self, number: signal.Signals) -> None:
        for leader in self._leaders:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: no permission for a zombie
                os.killpg(leader.pid, number)

    def _living(self) -> list[int]:
        """Return the ids of the processes that still run, zombies aside. Without /proc it finds none."""
        groups = {leader.pid for leader in self._leaders}
        for leader in self._leaders:
            leader.poll()  # or it stays a zombie
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # ended meanwhile
                state, _, group = path.read_bytes().rpartition(b")")[2].split()[:3]
                if int(group) in groups and state not in (b"Z", b"X"):
                    found.append(int(path.parent.name))
        return found


def _start_services(processes: _Processes, log_path: Path) -> list[subprocess.Popen[bytes]]:
    """Start a SuperLink on a free port and a SuperExec, which runs the simulation; return them when they answer."""
    log_path.unlink(missing_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    connection = f'[superlink]\ndefault = "{_CONNECTION}"\n[superlink.{_CONNECTION}]\n'
    (processes.home / "config.toml").write_text(connection + f'address = "{address}"\ninsecure = true\n')

    # With "process" it is left to us to start the SuperExec, so that we know its process group.
    arguments = ["--insecure", "--simulation", "--isolation", "process", "--host", "127.0.0.1", "--port", str(port)]
    superlink = processes.start("flower-superlink", arguments, log_path)
    _poll(lambda: superlink.poll() is not None or _is_healthy(port), _START_SECONDS)
    if superlink.poll() is not None or not _is_healthy(port):
        raise RuntimeError(f"Flower's SuperLink did not come up: {_last_line(log_path)} (see {log_path})")

    # If this process is killed outright, SuperExec sees its parent gone and ends, and in a minute the simulation.
    arguments = ["--insecure", "--runtime-api-address", address, "--parent-pid", str(os.getpid())]
    return [superlink, processes.start("flower-superexec", arguments, log_path)]


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _outcome(processes: _Processes, log_path: Path) -> RunOutcome:
    """Ask for the one run of the private SuperLink. The exit status of `flwr run --stream` says nothing."""
    listing = processes.home / "runs.json"
    command = processes.start("flwr", ["list", _CONNECTION, "--format", "json"], listing)
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(timeout=_COMMAND_SECONDS)
    status, details = "unknown", ""
    with contextlib.suppress(ValueError, LookupError):
        run = json.loads(listing.read_text(encoding="utf-8"))["runs"][0]
        status, details = run["status"], run["status-details"]
    if not status.startswith("finished"):
        raise RuntimeError(f"Flower did not run the app to its end: {_last_line(log_path)} (see {log_path})")
    return RunOutcome(status, details, log_path)


def _environment(home: Path) -> dict[str, str]:
    """Return the environment that all processes of the run inherit, the apps too."""
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home),  # no traces in /tmp/ray, and no other cluster found there
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default: zero GPUs asked for does not hide them
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "500",  # or the CLI breaks an error message into lines
    }
    environment.pop("RAY_ADDRESS", None)  # Ray would join that cluster instead of starting ours
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    return environment


def _poll(condition: Callable[[], bool], limit_seconds: float) -> bool:
    """Wait until the condition holds, at most `limit_seconds`; return whether it does."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _last_line(log_path: Path) -> str:
    """Return the last line of a log that says something, without colours and frames."""
    lines = (_DECORATION.sub("", line).strip() for line in log_path.read_text("utf-8", errors="replace").splitlines())
    return next((line for line in reversed([*lines]) if line), "its log is empty")
