"""The command line: `fedmops`."""

import signal
import sys
from typing import Annotated

import typer
from rich.console import Console

from simulations.pretrain import pretrain
from simulations.simulate import Engine, simulate

console = Console()
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

app.command()(pretrain)


@app.command("simulate")
def simulate_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET|FILE.toml] [KEY=VALUE]...", help="a preset or TOML file, then overrides"),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="inline: in this process; ray: Flower's simulation engine")
    ] = Engine.INLINE,
    cpus_per_client: Annotated[int, typer.Option(min=1, help="ray only: CPU cores of a client")] = 1,
    gpus_per_client: Annotated[float, typer.Option(min=0.0, help="ray only: share of a GPU of a client")] = 0.0,
) -> None:
    """Run a federation with all clients on this machine; print every client's perplexity before and after."""
    simulate(words or [], engine, cpus_per_client, gpus_per_client, console)


def main() -> None:
    """Run the command line: bad input ends in one line and exit code 2, a failed run in one line and exit code 1."""
    errors = Console(stderr=True)
    # A polite kill must tear down what a run started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app(standalone_mode=False)
    except ValueError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True, highlight=False)
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        errors.print(f"failed: {error}", style="red", markup=False, soft_wrap=True, highlight=False)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        errors.print("stopped; what was done so far is in the run directory", style="yellow")
        sys.exit(130)
