"""The table of results says of every client what the mixture did to it."""

import io
from dataclasses import asdict

import pytest
from rich.console import Console

from common.data_counts import CutCounts, DataCounts
from common.measures import MEASURES
from simulations.report import data_line, gate_line, measures_table, result_table

RESULT = {
    "clients": [
        {
            "client": 0,
            "tasks": ["[b]reverse", "sum[/red]"],
            "num_examples": 7,
            "backbone_perplexity": 8.0,
            "perplexity": 2.0,
        },
        {"client": 1, "tasks": ["sort"], "num_examples": 5, "backbone_perplexity": 4.0},
        {"client": 2, "tasks": ["sum"], "num_examples": 3, "backbone_perplexity": 2.0, "perplexity": 3.0},
    ],
    "backbone_perplexity": 4.0,
    "perplexity": 2.449,
}


@pytest.fixture
def rows() -> list[list[str]]:
    output = io.StringIO()
    Console(file=output, width=200).print(result_table(RESULT))
    lines = [line.replace("┃", "│") for line in output.getvalue().splitlines()]
    return [[cell.strip() for cell in line.strip().strip("│").split("│")] for line in lines if "│" in line]


def test_a_clients_row_has_tasks_examples_perplexities_and_change(rows: list[list[str]]) -> None:
    assert rows[0] == ["client", "tasks", "examples", "backbone", "mixture", "change"]
    assert rows[1] == ["0", "[b]reverse, sum[/red]", "7", "8.00", "2.00", "-75%"]
    assert rows[3] == ["2", "sum", "3", "2.00", "3.00", "+50%"]


def test_a_client_without_reply_is_in_the_table(rows: list[list[str]]) -> None:
    assert rows[2] == ["1", "sort", "5", "4.00", "no reply", ""]


def test_the_last_row_is_over_the_clients_that_replied(rows: list[list[str]]) -> None:
    assert rows[4] == ["all", "geometric mean over clients", "10", "4.00", "2.45", "-39%"]
    assert len(rows) == 5


def test_a_baseline_is_named_and_personal_steps_have_a_column() -> None:
    personal = [{"personalised_perplexity": 1.5}, {"personalised_perplexity": 3.0}, {}]
    clients = [row | more for row, more in zip(RESULT["clients"], personal, strict=True)]  # type: ignore[operator]
    table = result_table({**RESULT, "clients": clients, "personalised_perplexity": 2.121}, "lora")
    names = ["client", "tasks", "examples", "backbone", "lora", "change", "personalised"]
    assert [column.header for column in table.columns] == names
    assert [*table.columns[-1].cells] == ["1.50", "3.00", "no reply", "2.12"]


def test_many_tasks_are_counted_and_not_named() -> None:
    client = {"client": 0, "tasks": [*"abcdefg"], "num_examples": 7, "backbone_perplexity": 8.0}
    table = result_table({"clients": [client], "backbone_perplexity": 8.0, "perplexity": 8.0})
    assert next(iter(table.columns[1].cells)) == "7 tasks"


def test_the_gates_line_sets_information_beside_its_bound() -> None:
    use = [0.5, 0.25, 0.125, 0.125]
    line = {"expert_use": use, "smallest_expert_use": 0.125, "task_expert_information": 1.0, "gate_entropy": 0.25}
    assert gate_line(line) == (
        "gate: 1.00 nats of information between task and expert, at most 1.39; entropy 0.25; "
        "the least used expert has 12.5% of the weight"
    )


def test_measures_have_a_table_of_their_own() -> None:
    before, after = {"exact-match": 0.0, "rouge-l": 0.125}, {"exact-match": 0.5, "rouge-l": 1.0}
    clients = [
        {"client": 0, "tasks": ["[b]reverse"], "backbone_measures": before, "measures": after},
        {"client": 1, "tasks": ["sort"], "backbone_measures": {"rouge-l": 0.25}},
    ]
    table = measures_table({"clients": clients, "backbone_measures": before, "measures": after})
    assert [column.header for column in table.columns] == ["client", "tasks", "exact match", "ROUGE-L"]
    assert [[*column.cells] for column in table.columns[2:]] == [
        ["0.00 → 0.50", "", "0.00 → 0.50"],
        ["0.12 → 1.00", "0.25 → no reply", "0.12 → 1.00"],
    ]


def test_all_measures_fit_into_100_columns() -> None:
    values = dict.fromkeys(MEASURES, 0.5)
    tasks = ["centimetres", "initials", "numeric-date", "tomorrow", "question"]
    row = {"client": 10, "tasks": tasks, "backbone_measures": values, "measures": values}
    output = io.StringIO()
    Console(file=output, width=100).print(measures_table({"clients": [row], **row}))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    for said in ("choice accuracy", "0.50 → 0.50", "numeric-date,"):
        assert any(said in line for line in lines), said


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (DataCounts(CutCounts(9), CutCounts(9)), ""),
        (
            DataCounts(CutCounts(90, 2, 1, 0), CutCounts(9, 0, 0, 0)),
            "data: 3 of 90 training and 0 of 9 evaluation examples are left out, as they are too long",
        ),
        (
            DataCounts(CutCounts(90, 2, 1, 7), CutCounts(9, 0, 1, 4), num_bad_rows=5),
            "data: 3 of 90 training and 1 of 9 evaluation examples are left out; the prompts of 7 training and 4 "
            "evaluation examples are cut, as they are too long; 5 bad rows are skipped",
        ),
        (DataCounts(CutCounts(9), CutCounts(9), num_bad_rows=5), "data: 5 bad rows are skipped"),
    ],
)
def test_a_line_says_what_was_cut_or_left_out(counts: DataCounts, said: str) -> None:
    assert data_line(asdict(counts)) == said
