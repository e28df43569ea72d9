"""The commands of `fedmops deploy`: a run across machines."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.host_socket import ask_health
from common.backbone_source import distribution_root
from common.config import read_config
from deployment import folder, node, run, server
from server.run_directory import new_run_directory
from simulations.settings import resolve

deploy = typer.Typer(no_args_is_help=True, help="Run across machines: a server, a node for each client.")
console = Console()
DEFAULT_PORT = 8000

ServerPart = Annotated[Path, typer.Argument(metavar="FOLDER/server", help="the server's part of a deployment")]
NodePart = Annotated[Path, typer.Argument(metavar="FOLDER/node-N", help="a node's part of a deployment")]
ControlPart = Annotated[Path, typer.Argument(metavar="FOLDER/control", help="the part of who submits runs")]


@deploy.command("init")
def init_command(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="new; its parts go to their machines")],
    nodes: Annotated[int, typer.Option(min=1, help="how many clients there will be")],
    address: Annotated[str, typer.Option(help="host name or address by which nodes reach the server")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="the server's one port")] = DEFAULT_PORT,
) -> None:
    """Write certificates, keys and settings for a server and its nodes; print what to start where."""
    folder.init(target, address, port, nodes)
    tell(f"{target} holds a part for each machine. {target}/ca.key signs certificates: keep it off all of them.")
    tell(f"  on the server:      fedmops deploy server {target}/{folder.SERVER}")
    for number in range(nodes):
        tell(f"  on node {number}:          fedmops deploy node {target}/{folder.NODE}-{number}")
    tell(f"  then, to run:       fedmops deploy run {target}/{folder.CONTROL} num-rounds=3")
    tell(f"  how it goes:        fedmops deploy status {target}/{folder.CONTROL}")


@deploy.command("server")
def server_command(part: ServerPart) -> None:
    """Run the server until Ctrl-C; what ends is started again. Runs are written to PART/runs."""
    server.serve(part, tell)


@deploy.command("node")
def node_command(part: NodePart) -> None:
    """Run a node until Ctrl-C: its host, which keeps the backbone, and its SuperNode; what ends is started again."""
    node.serve(part, tell)


@deploy.command("run")
def run_command(
    part: ControlPart,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET|FILE.toml] [KEY=VALUE]...", help="as of fedmops simulate")
    ] = None,
    resumes: Annotated[int, typer.Option(min=0, help="how often at most, where the ServerApp is lost")] = 3,
) -> None:
    """Submit a run and follow it to its end. The exit code is 0 only where the run gave a result.

    Where the ServerApp is lost, the run is resumed after its last whole round.
    """
    settings = resolve(words or [], {"num-clients": folder.read_control(part).num_nodes})
    # Named here, so that nodes know the run by it, too, when it is resumed.
    settings["run-directory"] = str(new_run_directory(read_config(settings)))
    ended = run.submit_and_resume(part, distribution_root(), settings, resumes, tell)
    if ended != run.COMPLETED:
        raise RuntimeError(f"the run ended as {ended}: the server's superexec.log and its run's run.log tell more")


@deploy.command("status")
def status_command(part: Annotated[Path, typer.Argument(metavar="PART", help="of the control, or of a node")]) -> None:
    """Show nodes and runs as the server sees them; or, of a node, what its host does."""
    if (part / f"{folder.NODE}.toml").is_file():
        try:
            health = ask_health(node.host_socket(part.resolve()))
        except OSError as error:
            raise RuntimeError(f"no host answers in {part} ({error}): start it with `fedmops deploy node`") from None
        for key, value in health.items():
            tell(f"{key.replace('_', ' ')}: {value}")
        return
    for row in run.nodes(part):
        since = row.get(f"{row['status']}-at", "N/A")
        tell(f"node {row['node-id']}: {row['status']}" + (f" since {since}" if since != "N/A" else ""))
    for row in run.runs(part):
        ended = row["finished-at"] != "N/A"
        period = f"from {row['running-at']} to {row['finished-at']}" if ended else f"since {row['running-at']}"
        tell(f"run {row['run-id']}: {row['status']}, {period}")


def tell(line: str) -> None:
    """Say a line as it is."""
    console.print(line, markup=False, soft_wrap=True, highlight=False)
