"""`fedmops plan`: what it prints, and how it refuses."""

from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from common.config import read_config
from simulations.plan import Lengths, plan, read_lengths
from simulations.plan_table import CUDA_CONTEXT, GIB, MIB, Kind, fits, numbers, size
from simulations.planning.client_data import Texts
from simulations.planning.memory import Memory
from simulations.settings import resolve

SMALL = ["train-examples=20", "eval-examples=5", "tasks=add,age,city", "num-clients=3", "device=cpu"]


def shown(*words: str, lengths: Lengths | None = None, gpu_gib: float | None = None) -> str:
    written = StringIO()
    plan([*SMALL, *words], lengths, gpu_gib, Console(file=written, width=100))
    return written.getvalue()


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {name}")]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_a_plan_says_what_is_trained_sent_and_held() -> None:
    text = shown("num-experts=1", "tokens-per-expert=34", gpu_gib=24)
    # 34 tokens, a key and a value of 128 numbers each, in the upper three of six layers.
    assert f"mixture on skills: {34 * 2 * 128 * 3:,} parameters are trained for 1,312,768 frozen ones" in text
    assert "clients 0-2" in text
    assert row(text, "backbone's weights") == ["773 KiB"]
    assert "a GPU of 24 GiB holds" in text


def test_longer_texts_take_more() -> None:
    def step(text: str) -> float:
        words, unit = row(text, "a training step")[0].rsplit(" ", 1)
        assert unit == "MiB"
        return float(words.split(": ")[1])

    assert row(short := shown(lengths=Lengths(60, 8)), "longest text") == ["60, 8 tokens"]
    assert step(shown(lengths=Lengths(120, 8))) > 2 * step(short)


def test_clients_that_differ_have_columns_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("own") / "clients.toml"
    path.write_text('[1]\nquantization = "none"\n')
    text = shown(f"clients={path}")
    assert row(text, "backbone's weights") == ["773 KiB", "2.5 MiB"]
    assert "clients 0, 2" in text


def test_a_gpu_holds_as_many_as_fit_with_their_contexts() -> None:
    memory = Memory(weights=GIB, trained=0, training=GIB, evaluation=0)
    kind = Kind([0], read_config(resolve([])), Texts(1, 1, 1, 1), memory)
    needed = (2 * GIB + CUDA_CONTEXT) / GIB
    assert "holds 3 such clients" in fits(kind, 3 * needed + 0.01)
    assert "holds 2 such clients" in fits(kind, 3 * needed - 0.01)
    assert "holds no such client with nf4" in (none := fits(kind, needed - 0.01))
    assert "lower pass-tokens" in none


@pytest.mark.parametrize(
    ("num_bytes", "expected"), [(5, "5 B"), (1024, "1.0 KiB"), (150 * 1024, "150 KiB"), (3 * MIB, "3.0 MiB")]
)
def test_sizes_have_units(num_bytes: int, expected: str) -> None:
    assert size(num_bytes) == expected


def test_runs_of_numbers_are_shortened() -> None:
    assert numbers([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@pytest.mark.parametrize("words", ["512", "8+8", "8+9", "a+b", "9+0", "+"])
def test_lengths_without_room_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"--lengths must be TEXT\+ANSWER"):
        read_lengths(words)


def test_a_preset_that_does_not_exist_ends_in_one_line(
    fedmops: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedmops("plan", "nothing") == 2
    assert "unknown preset 'nothing'" in capsys.readouterr().err
