"""Pre-training from start to end: tokenizer, model, loop, saved model and its card."""

import math
import platform
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch

from common.architecture import new_llama, round_weights, save_model
from common.packing import Batch, Position, batches
from common.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from simulations.pretraining.corpora import HELD_OUT_ONE_IN, held_out_documents, training_documents
from simulations.pretraining.loop import (
    Budget,
    Progress,
    interruption,
    mean_loss,
    new_loss,
    new_optimizer,
    optimize,
    read_checkpoint,
)
from simulations.pretraining.model_card import TrainingRecord, model_card
from simulations.pretraining.options import Device, Options, Precision
from simulations.pretraining.progress import ProgressReport

TOKENIZER_SAMPLE_DOCUMENTS = 20_000
VALIDATION_CHARACTERS, FINAL_VALIDATION_CHARACTERS = 2**15, 2**18


def train(options: Options) -> None:
    """Train to the end of the budget and save the model, its tokenizer and its card.

    When interrupted, save a checkpoint and raise KeyboardInterrupt.
    """
    state = read_checkpoint(options.checkpoint_file, options.settings()) if options.resume else None
    device = torch_device(options.device)
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
    plain_loss = new_loss(model, device, torch_dtype(options.precision), compiled=False)
    training_loss = (
        new_loss(model, device, torch_dtype(options.precision), compiled=True) if options.compile else plain_loss
    )
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
            budget=Budget(options.max_tokens, None if options.max_minutes is None else 60 * options.max_minutes),
            validate=lambda: mean_loss(plain_loss, validation),
            save=lambda: progress.save(options.checkpoint_file, options.settings()),
            seconds_between_checkpoints=60 * options.checkpoint_minutes,
            interrupted=interrupted,
            report=report,
        )
        if interrupted.is_set():
            report.say(f"interrupted after {progress.num_tokens:,} tokens: continue with --resume")
            raise KeyboardInterrupt
        round_weights(model, torch_dtype(options.storage_dtype))  # the last validation measures what is stored
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
    save_model(model, tokenizer, options.output, torch_dtype(options.storage_dtype))
    (options.output / "README.md").write_text(model_card(record), encoding="utf-8")
    shutil.rmtree(options.checkpoint_directory)


def torch_dtype(precision: Precision) -> torch.dtype:
    """Return the precision as torch names it."""
    return torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32


def torch_device(device: Device) -> torch.device:
    """Return the device as torch names it. Raises ValueError for cuda without a CUDA device."""
    if device is Device.CUDA and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device: pass cpu or auto")
    use_cuda = device is not Device.CPU and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


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
