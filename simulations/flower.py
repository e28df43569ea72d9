"""The ray engine: one run of the Flower App on Flower's own simulation, private from start to end.

`flwr run` alone leaves a SuperLink behind, reuses whatever answers on its port, installs dependencies over ours and
exits 0 when the run failed. So each run gets its own SuperLink on a free port with its own FLWR_HOME, and everything
that it started is gone when `run_on_ray` returns or raises. Written against Flower 1.41; POSIX only.
"""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.flower_processes import Processes, last_line, to_toml, wait_for_superlink

_COMMAND_SECONDS = 60.0  # `flwr list` takes about 3
_CONNECTION = "private"  # the name of our SuperLink in config.toml


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
    # Not in $TMPDIR: Ray's sockets lie in here too, and the path of a UNIX socket may have 107 bytes only.
    directory = tempfile.TemporaryDirectory(prefix="fedmops-", dir="/tmp", ignore_cleanup_errors=True)
    with directory as home, Processes(Path(home)) as processes:
        services = _start_services(processes, log_directory / "superlink.log")
        overrides = processes.home / "overrides.toml"
        overrides.write_text(to_toml(run_config), encoding="utf-8")
        arguments = [str(app_directory.resolve()), _CONNECTION, "--stream", "--federation-config", federation]
        submission = processes.start("flwr", ["run", *arguments, "-c", str(overrides)], log_path)
        while submission.poll() is None and all(service.poll() is None for service in services):
            with contextlib.suppress(subprocess.TimeoutExpired):
                submission.wait(timeout=1.0)
        return _outcome(processes, log_path)


def _start_services(processes: Processes, log_path: Path) -> list[subprocess.Popen[bytes]]:
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
    wait_for_superlink(superlink, port, log_path)

    # If this process is killed outright, SuperExec sees its parent gone and ends, and in a minute the simulation.
    arguments = ["--insecure", "--runtime-api-address", address, "--parent-pid", str(os.getpid())]
    return [superlink, processes.start("flower-superexec", arguments, log_path)]


def _outcome(processes: Processes, log_path: Path) -> RunOutcome:
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
        raise RuntimeError(f"Flower did not run the app to its end: {last_line(log_path)} (see {log_path})")
    return RunOutcome(status, details, log_path)
