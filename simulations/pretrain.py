"""`fedmops pretrain`: train a small Llama-type language model from text, to serve as a backbone."""

import math
import platform
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer

from common.architecture import new_llama, round_weights, save_model
from common.packing import Batch, Position, batches
from common.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from simulations.corpora import HELD_OUT_ONE_IN, held_out_documents, training_documents
from simulations.model_card import TrainingRecord, model_card
from simulations.pretrain_loop import (
    Progress,
    interruption,
    mean_loss,
    new_loss,
    new_optimizer,
    optimize,
    read_checkpoint,
)
from simulations.pretrain_options import Device, Options, Precision
from simulations.progress import ProgressReport

TOKENIZER_SAMPLE_DOCUMENTS = 20_000
VALIDATION_CHARACTERS, FINAL_VALIDATION_CHARACTERS = 2**15, 2**18


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
    train(Options(**locals()))


def train(options: Options) -> None:
    """Train to the end of the budget and save the model, its tokenizer and its card.

    When interrupted, save a checkpoint and raise KeyboardInterrupt.
    """
    state = read_checkpoint(options.checkpoint_file, options.settings()) if options.resume else None
    device = options.device.device
    given_tokenizer = options.checkpoint_directory if options.resume else options.tokenizer
    tokenizer = (
        load_tokenizer(given_tokenizer)
        if given_tokenizer
        else train_tokenizer(
            islice(training_documents(options.text, options.seed), TOKENIZER_SAMPLE_DOCUMENTS), options.vocab_size
        )
    )
    model = new_llama(
        tokenizer,
        hidden_size=options.hidden_size,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        num_kv_heads=options.num_kv_heads,
        intermediate_size=options.intermediate_size,
        sequence_length=options.sequence_length,
        seed=options.seed,
        attention="eager" if device.type == "cpu" else "sdpa",
    ).to(device)
    progress = Progress(model, new_optimizer(model, options.learning_rate))
    if state is not None:
        progress.load(state)
    pack = partial(
        batches,
        encode=partial(encode_documents, tokenizer),
        batch_size=options.batch_size,
        length=options.sequence_length,
        pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    # Validation is never compiled: its last, shorter batch would be compiled for itself.
    plain_loss = new_loss(model, device, options.precision.dtype, compiled=False)
    training_loss = new_loss(model, device, options.precision.dtype, compiled=True) if options.compile else plain_loss
    validation, _ = _held_out(options, pack, VALIDATION_CHARACTERS)
    final_validation, num_characters = _held_out(options, pack, FINAL_VALIDATION_CHARACTERS)

    options.checkpoint_directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(options.checkpoint_directory)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    with ProgressReport() as report, interruption() as interrupted:
        report.say(f"{num_parameters:,} parameters, {len(tokenizer)} tokens in the vocabulary, on {device}")
        optimize(
            progress,
            pack(training_documents(options.text, options.seed), start=progress.position),
            training_loss,
            learning_rate=options.learning_rate,
            budget=options.budget,
            validate=lambda: mean_loss(plain_loss, validation),
            save=lambda: progress.save(options.checkpoint_file, options.settings()),
            seconds_between_checkpoints=60 * options.checkpoint_minutes,
            interrupted=interrupted,
            report=report,
        )
        if interrupted.is_set():
            report.say(f"interrupted after {progress.num_tokens:,} tokens: continue with --resume")
            raise KeyboardInterrupt
        round_weights(model, options.storage_dtype.dtype)  # the last validation measures what is stored
        nats_per_token = mean_loss(plain_loss, final_validation)
        num_nats = nats_per_token * sum(batch.num_tokens for batch in final_validation)
        record = TrainingRecord(
            options=options.plain(),
            num_parameters=num_parameters,
            device=torch.cuda.get_device_name() if device.type == "cuda" else f"a CPU ({platform.machine()})",
            num_tokens=progress.num_tokens,
            seconds=progress.seconds,
            nats_per_token=nats_per_token,
            bits_per_character=num_nats / num_characters / math.log(2),
        )
        report.say(record.summary)
    save_model(model, tokenizer, options.output, options.storage_dtype.dtype)
    (options.output / "README.md").write_text(model_card(record), encoding="utf-8")
    shutil.rmtree(options.checkpoint_directory)


def _held_out(options: Options, pack: Callable[..., Iterator[Batch]], num_characters: int) -> tuple[list[Batch], int]:
    """Return held-out batches of about `num_characters`, and how many characters they are."""
    documents: list[str] = []
    total = 0
    for document in held_out_documents(options.text, options.seed):
        documents.append(document)
        total += len(document)
        if total >= num_characters:
            break
    if not documents:
        raise ValueError(
            f"{options.text} has no documents to validate on: about one in {HELD_OUT_ONE_IN} is held out, it must hold "
            "hundreds, add some"
        )
    return list(pack(iter(documents), start=Position())), total


if __name__ == "__main__":
    typer.run(pretrain)
