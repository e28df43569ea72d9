"""Flower's programs as processes of ours: started in an environment of their own, and gone when we are.

Written against Flower 1.41; POSIX only.
"""

import contextlib
import http.client
import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.poll import poll

logger = logging.getLogger(__name__)

STOP_SECONDS = 10.0  # Ray goes in about 5
START_SECONDS = 60.0
COMMAND_SECONDS = 60.0  # `flwr list` takes about 3
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|[\u2500-\u257f]")  # colours, and the boxes that rich draws
_SAYS_NOTHING = re.compile(r"[A-Z]+ *:")


def to_toml(run_config: Mapping[str, str | int | float | bool]) -> str:
    """Return the overrides as TOML. `flwr run -c FILE.toml` takes any string; its `key=value` form has no escapes.

    A JSON string or boolean is one of TOML too. Keys are quoted, so that a key with a dot stays one key.
    """
    lines = []
    for key, value in run_config.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
        lines.append(f"{json.dumps(key)} = {text}\n")
    return "".join(lines)


class Processes:
    """Processes with the FLWR_HOME that they share; on leaving, none of them survives.

    Each is started as the leader of its own session and process group, so Ctrl-C reaches this process alone, and what
    the leader starts stays in its group: Flower's simulation and all of Ray in SuperExec's.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._leaders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._signal(signal.SIGTERM)
            poll(lambda: not self._living(), STOP_SECONDS)
        finally:  # also after a second Ctrl-C
            self._signal(signal.SIGKILL)
            if not poll(lambda: not self._living(), STOP_SECONDS):
                logger.error("processes of the run survive and must be ended by hand: %s", self._living())
            for leader in self._leaders:  # one that ended a moment ago is a zombie until it is waited for
                with contextlib.suppress(subprocess.TimeoutExpired):
                    leader.wait(timeout=STOP_SECONDS)

    def start(self, program: str, arguments: Sequence[str], log_path: Path) -> subprocess.Popen[bytes]:
        """Start a program of this Python environment; its output is appended to the log."""
        with log_path.open("ab") as log:
            leader = subprocess.Popen(
                [Path(sysconfig.get_path("scripts")) / program, *arguments],
                # In the home, for Ray puts its working directory before the app on the actors' sys.path.
                cwd=self.home,
                env=environment(self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._leaders.append(leader)
        return leader

    def end(self, leader: subprocess.Popen[bytes]) -> None:
        """End one process, and what it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                leader.wait(timeout=STOP_SECONDS)
        self._leaders.remove(leader)

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


def run_flwr(home: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Flower's command line to its end, with the connections that stand in the home's config.toml.

    Raises RuntimeError where it does not end.
    """
    try:
        return subprocess.run(
            [Path(sysconfig.get_path("scripts")) / "flwr", *arguments],
            cwd=home,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"flwr {' '.join(arguments)} did not end within {COMMAND_SECONDS:.0f} s") from None


def wait_for_superlink(
    superlink: "subprocess.Popen[bytes]", port: int, log: Path, root_certificate: Path | None = None
) -> None:
    """Wait until a SuperLink on this machine answers. Raises RuntimeError, with its log's last line, if it does not."""

    def is_up() -> bool:
        return is_healthy(port, root_certificate=root_certificate)

    poll(lambda: superlink.poll() is not None or is_up(), START_SECONDS)
    if superlink.poll() is not None or not is_up():
        raise RuntimeError(f"Flower's SuperLink did not come up: {last_line(log)} (see {log})")


def is_healthy(port: int, host: str = "127.0.0.1", root_certificate: Path | None = None) -> bool:
    """Tell whether a SuperLink answers, by TLS if there is a certificate to know it by."""
    if root_certificate is None:
        connection = http.client.HTTPConnection(host, port, timeout=2.0)
    else:
        trusted = ssl.create_default_context(cafile=str(root_certificate))
        connection = http.client.HTTPSConnection(host, port, timeout=2.0, context=trusted)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def environment(home: Path) -> dict[str, str]:
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


def plain(text: str) -> str:
    """Return what Flower prints without colours and frames; nothing of a line of its log that says nothing."""
    text = _DECORATION.sub("", text).strip()
    return "" if _SAYS_NOTHING.fullmatch(text) else text


def last_line(log_path: Path) -> str:
    """Return the last line of a log that says something, without colours and frames."""
    lines = map(plain, log_path.read_text("utf-8", errors="replace").splitlines())
    return next((line for line in reversed([*lines]) if line), "its log is empty")
