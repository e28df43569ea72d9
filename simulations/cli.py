"""The command line: `fedmops`."""

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console

from common.backbone_source import BUILT_IN, STORED, locate
from common.config import QUANTIZATIONS, read_quantizations
from common.saved_run import read_run
from simulations.check import check
from simulations.compare import compare
from simulations.compression.options import METHODS, NUM_CALIBRATION
from simulations.compression.options import Options as CompressionOptions
from simulations.compression.texts import choose_texts, held_out_examples
from simulations.deploy_cli import deploy
from simulations.generate import Ways, answer_all, answer_one, check_ways
from simulations.harness import evaluate_run, read_options
from simulations.partitions import show_partitions
from simulations.plan import plan, read_lengths
from simulations.pretraining.options import Device, Options, Precision
from simulations.questions import one_question, read_questions
from simulations.run_report import report
from simulations.simulate import Engine, resume, simulate, spin_briefly
from simulations.sweep import EvalSplit, sweep
from simulations.view import progress_of_runs

Quantization = StrEnum("Quantization", [(name, name) for name in QUANTIZATIONS])  # type: ignore[misc]


Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PRESET|FILE.toml] [KEY=VALUE]...", help="a preset or TOML file, then overrides"),
]

console = Console()
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(deploy, name="deploy")


@app.command("simulate")
def simulate_command(
    words: Words = None,
    engine: Annotated[
        Engine, typer.Option(help="inline: in this process; ray: Flower's simulation engine")
    ] = Engine.INLINE,
    cpus_per_client: Annotated[int, typer.Option(min=1, help="ray only: CPU cores of a client")] = 1,
    gpus_per_client: Annotated[float, typer.Option(min=0.0, help="ray only: share of a GPU of a client")] = 0.0,
) -> None:
    """Run a federation with all clients on this machine; print every client's perplexity before and after."""
    simulate(words or [], engine, cpus_per_client, gpus_per_client, console)


@app.command("resume")
def resume_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the directory of a run that was interrupted")],
    engine: Annotated[Engine, typer.Option(help="as of fedmops simulate")] = Engine.INLINE,
    cpus_per_client: Annotated[int, typer.Option(min=1, help="ray only: CPU cores of a client")] = 1,
    gpus_per_client: Annotated[float, typer.Option(min=0.0, help="ray only: share of a GPU of a client")] = 0.0,
) -> None:
    """Go on with an interrupted simulation after its last whole round; in the end it is as if nothing had been."""
    resume(run, engine, cpus_per_client, gpus_per_client, console)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the directory of a run, ended or not")],
    output: Annotated[Path | None, typer.Option(help="where the picture goes; default: clients.png in RUN")] = None,
) -> None:
    """Show what a run did to every client, as a table and a picture by round; also while it goes on."""
    report(run, output, console)


@app.command("check")
def check_command(
    words: Words = None,
    penalty: Annotated[
        bool, typer.Option("--penalty", help="also say what its compression costs each client on its own examples")
    ] = False,
) -> None:
    """Do all that a run does before round 1, and train nothing: which clients are ready, and what keeps the others."""
    raise typer.Exit(0 if check(words or [], penalty, console) else 1)


@app.command("partitions")
def partitions_command(
    words: Words = None,
    output: Annotated[Path | None, typer.Option(help="directory for partitions.json and partitions.png")] = None,
) -> None:
    """Show which client would own how much of which task, before anything is trained."""
    show_partitions(words or [], output, console)


@app.command("plan")
def plan_command(
    words: Words = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0.0, help="GiB; says how many clients fit into it")] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="TEXT+ANSWER", help="longest text and answer (tokens); default: the data's")
    ] = None,
) -> None:
    """Say what a run would need, without loading weights: parameters, bytes on the wire, memory of each client."""
    plan(words or [], read_lengths(lengths), gpu_memory, console)


@app.command("sweep")
def sweep_command(
    over: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE,VALUE...",
            help="a key to sweep and its values, keys that change together joined by +; repeated: every combination",
        ),
    ],
    output: Annotated[Path, typer.Option(help="directory of the runs and the table; new, or that of a stopped sweep")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET|FILE.toml] [KEY=VALUE]...", help="what all runs share, as of simulate"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="each combination runs with each")] = "0,1,2",
    processes: Annotated[int | None, typer.Option(min=1, help="runs at a time; default: the number of cores")] = None,
    split: Annotated[EvalSplit, typer.Option(help="test only for what is not tuned by it")] = EvalSplit.VALIDATION,
) -> None:
    """Measure how far perplexity depends on settings. After Ctrl-C the same command goes on from there."""
    num_failed = sweep(words or [], over, seeds, split, output, processes or os.cpu_count() or 1, console)
    raise typer.Exit(1 if num_failed else 0)


@app.command("compare")
def compare_command(
    words: Annotated[
        list[str],
        typer.Argument(metavar="COMPARISON|FILE.toml [KEY=VALUE]...", help="the methods, then what all runs share"),
    ],
    output: Annotated[Path, typer.Option(help="directory of runs, tables and plots; new, or a stopped comparison's")],
    seeds: Annotated[str, typer.Option(help="each method runs with each")] = "0,1,2,3,4",
    methods: Annotated[str | None, typer.Option(help="names with commas between; default: all of the file")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="runs at a time; default: the number of cores")] = None,
) -> None:
    """Compare methods, each at its best learning rate. After Ctrl-C the same command goes on from there."""
    num_missing = compare(words, seeds, methods, output, processes or os.cpu_count() or 1, console)
    raise typer.Exit(1 if num_missing else 0)


@app.command()
def train(
    words: Words = None,
) -> None:
    """Train one mixture on all clients' data together, the upper bound; print every client's perplexity."""
    simulate([*(words or []), "centralised=true"], Engine.INLINE, 1, 0.0, console)


@app.command()
def transfer(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run, or of a sweep.")],
    alone: Annotated[Path | None, typer.Option(help="Where the trainings lie; default: alone/ in it.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trainings at a time, each on one thread.")] = os.cpu_count()
    or 1,
) -> None:
    """Report the prompt transfer gain: what each task won or lost against a prompt of its own."""
    from simulations.sweep_transfer import is_sweep, transfer_by_setting
    from simulations.transfer import prompt_transfer_gain, transfer_table

    with progress_of_runs(console) as progress:
        bar = progress.add_task("training a prompt on each task alone", total=None)

        def on_task(done: int, count: int) -> None:
            progress.update(bar, completed=done, total=count)

        if is_sweep(run):
            table = transfer_by_setting(run, alone or run / "alone", processes, on_task)
        else:
            table = transfer_table(prompt_transfer_gain(run, alone or run / "alone", processes, on_task))
    console.print(table)


@app.command("generate")
def generate_command(
    run: Annotated[Path, typer.Argument(help="Directory of a run that finished a round.")],
    instruction: Annotated[str, typer.Argument(help="What is asked.")] = "",
    input: Annotated[str, typer.Option(help="What it is asked of.")] = "",
    task: Annotated[str, typer.Option(help="Name of its task, for a gate that goes by tasks.")] = "",
    batch: Annotated[
        Path | None,
        typer.Option(help="A .jsonl or .jsonl.gz file of instruction, input and perhaps task; writes JSONL."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Of --batch; default: standard output.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    num_beams: Annotated[int, typer.Option(min=1, help="Texts that are followed at once; the likeliest wins.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Above 0: sample.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    show_gate: Annotated[bool, typer.Option("--show-gate", help="Show the experts' weights too.")] = False,
    backbone: Annotated[str | None, typer.Option(help="Name or directory; default: the run's.")] = None,
    quantization: Annotated[Quantization | None, typer.Option(help="Default: the run's.")] = None,
    any_backbone: Annotated[
        bool, typer.Option("--any-backbone", help="Take a backbone that the mixture was not trained on.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto: cuda if there is one, else cpu.")] = Device.AUTO,
) -> None:
    """Ask a run's model: print the answer as it comes, or answer every row of a file."""
    if batch is not None and (instruction or input or task):
        raise ValueError("batch is a file of questions: leave out the instruction, input and task, or batch")
    if batch is None and output is not None:
        raise ValueError("output has no effect on one question, whose answer is printed: leave it out or give batch")
    asked = read_run(run, backbone, quantization, any_backbone)
    ways = Ways(max_new_tokens, num_beams, temperature, seed, device, show_gate)
    check_ways(asked, ways)
    errors = Console(stderr=True)
    if batch is None:
        answer_one(asked, one_question(asked, instruction, input, task), ways, errors)
        return
    questions = read_questions(asked, batch)
    if output is not None and output.exists() and output.samefile(batch):
        raise ValueError(f"output {output} is the batch itself: name another file")
    answer_all(asked, questions, output, ways, errors)


@app.command("lm-eval")
def lm_eval_command(
    run: Annotated[Path, typer.Argument(help="Directory of a run that finished a round.")],
    tasks: Annotated[str, typer.Option(metavar="A,B...", help="Names of lm-evaluation-harness, or of --include-path.")],
    include_path: Annotated[Path | None, typer.Option(help="Directory with YAML files of further tasks.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many examples of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Solved examples before each.")] = None,
    output: Annotated[Path | None, typer.Option(help="A JSON file for all figures.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Ask the backbone without the mixture only.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of a pass.")] = 16,
    device: Annotated[Device, typer.Option(help="auto: cuda if there is one, else cpu.")] = Device.AUTO,
) -> None:
    """Run tasks of lm-evaluation-harness, such as MMLU: the backbone alone, and with the run's mixture."""
    options = read_options(**{key: value for key, value in locals().items() if key != "run"})
    evaluate_run(read_run(run), options, console, Console(stderr=True))


@app.command()
def pretrain(
    output: Annotated[
        Path, typer.Argument(help="Directory for the model; new, or with --resume an interrupted run's.")
    ],
    text: Annotated[
        str, typer.Option(help='"skills", or a .jsonl or .jsonl.gz file with the field "text".')
    ] = "skills",
    tokenizer: Annotated[Path | None, typer.Option(help="Directory of a tokenizer; default: train one.")] = None,
    vocab_size: Annotated[int, typer.Option(help="Of the new tokenizer; 259: bytes alone.")] = 259,
    hidden_size: Annotated[int, typer.Option()] = 128,
    num_layers: Annotated[int, typer.Option()] = 6,
    num_heads: Annotated[int, typer.Option()] = 4,
    num_kv_heads: Annotated[int, typer.Option()] = 4,
    intermediate_size: Annotated[int, typer.Option()] = 384,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a row, and the model's longest input.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="The highest, after the warm-up.")] = 2e-3,
    max_tokens: Annotated[int | None, typer.Option(help="Ends the run; the schedule follows the budget.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Ends the run; the schedule follows the budget.")] = None,
    precision: Annotated[Precision, typer.Option(help="bfloat16: autocast; weights stay float32.")] = Precision.FLOAT32,
    storage_dtype: Annotated[Precision, typer.Option(help="Of the saved weights.")] = Precision.BFLOAT16,
    device: Annotated[Device, typer.Option(help="auto: cuda if there is one, else cpu.")] = Device.AUTO,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile; needs a C++ compiler.")] = False,
    seed: Annotated[int, typer.Option(help="Of the weights and the data.")] = 0,
    checkpoint_minutes: Annotated[float, typer.Option(help="Time between checkpoints.")] = 5.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Train a small Llama-type language model from text. Ctrl-C leaves a checkpoint for --resume."""
    options = Options(**locals())
    # Imports torch and transformers: only once the options are known to be right.
    from simulations.pretraining.train import train

    train(options)


@app.command("compress")
def compress_command(
    backbone: Annotated[str, typer.Argument(help='"skills", a directory or a hub id.')],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT_DIR", help="Directory for the pruned backbone; new.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="|".join(METHODS),
            help="Small weights go; wanda: small weights times inputs; 2:4: the same, two of every four.",
        ),
    ],
    sparsity: Annotated[float, typer.Option(help="Share of the weights that become zero; 2:4 takes 0.5 only.")] = 0.5,
    calibration: Annotated[
        str, typer.Option(help='"skills", or a .jsonl or .jsonl.gz file of examples, like a run\'s data.')
    ] = "skills",
    num_calibration: Annotated[
        int | None, typer.Option(help=f"Examples that wanda and 2:4 look at; default: {NUM_CALIBRATION}.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the examples that are drawn.")] = 0,
    device: Annotated[Device, typer.Option(help="auto: cuda if there is one, else cpu.")] = Device.AUTO,
) -> None:
    """Write a pruned copy of a backbone, and print what that costs: bytes, speed, perplexity."""
    options = CompressionOptions(**locals())
    spin_briefly()
    with console.status("reading the calibration texts"):
        texts = choose_texts(options)
    # Imports torch and transformers: only once the options are known to be right.
    with console.status("loading torch"):
        from simulations.compression.compress import compress

    compress(options, texts, console)


@app.command("compressions")
def compressions_command(
    backbones: Annotated[
        list[str], typer.Argument(metavar="BACKBONE [PRUNED]...", help="A name as of the key backbone; pruned copies.")
    ],
    output: Annotated[Path, typer.Option(help="Directory for the table and its JSON.")],
    quantizations: Annotated[str, typer.Option(help="Of the first backbone, with commas between.")] = ",".join(
        name for name in QUANTIZATIONS if name != STORED
    ),
    data: Annotated[str, typer.Option(help='"skills" or a file, whose validation split is scored.')] = BUILT_IN,
    device: Annotated[Device, typer.Option(help="auto: cuda if there is one, else cpu.")] = Device.AUTO,
) -> None:
    """Measure what compressing a backbone costs: bytes on disk and in memory, speed, perplexity."""
    wanted = read_quantizations(quantizations)
    for name in backbones:
        locate(name)
    spin_briefly()
    with console.status("reading the data, loading torch"):
        examples = held_out_examples(data, 0)
        from simulations.compression.compressions import measure_compressions

    measure_compressions(backbones, wanted, examples, device, output, console)


def main() -> None:
    """Run the command line: bad input ends in one line and exit code 2, a failed run in one line and exit code 1."""
    errors = Console(stderr=True)
    # A polite kill must tear down what a run started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ValueError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True, highlight=False)
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        errors.print(f"failed: {error}", style="red", markup=False, soft_wrap=True, highlight=False)
        sys.exit(1)
    sys.exit(code)  # 130 after Ctrl-C, which typer catches, else nothing


if __name__ == "__main__":
    main()
