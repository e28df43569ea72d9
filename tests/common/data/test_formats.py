"""Every format gives the same rows to every mapping; files of any size are read in bounded memory."""

import gzip
import json
import random
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from table_files import FORMATS, write_rows

from common.data.bad_row import BadRowError
from common.data.formats import open_table, read_objects, stem_of, suffix_of
from common.data.load import load_examples, read_data
from common.example import Example

TEXT = 'Où est "l\'école", 学校?\nأين 🏫'  # quotes, commas, a line break, scripts from right to left, beyond 16 bits
TASK = "mine"  # the file's stem, where rows name no task


def example(task=TASK, instruction="", text="", output="Là-bas, \t→", **more):
    return Example("test", task, more.pop("domain", task), "", instruction, text, output, **more)


TURNS = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
TURNS += [{"role": "assistant", "content": "hello"}, {"role": "user", "content": TEXT}]
# Name of a case: the key `columns`, a row, and the example that it is.
MAPPINGS = {
    "plain": (
        "",
        {"task": "geo", "domain": "places", "instruction": TEXT, "input": "x", "output": "Là-bas, \t→"},
        example("geo", TEXT, "x", domain="places"),
    ),
    "alpaca": ("", {"instruction": TEXT, "input": "x", "output": "Là-bas, \t→"}, example(TASK, TEXT, "x")),
    "alpaca without input": ("", {"instruction": TEXT, "output": "Là-bas, \t→"}, example(TASK, TEXT)),
    "dolly": (
        "",
        {"instruction": TEXT, "context": "x", "response": "Là-bas, \t→", "category": "qa"},
        example("qa", TEXT, "x"),
    ),
    "dolly by name": (
        "dolly",
        {"instruction": TEXT, "context": None, "response": "Là-bas, \t→", "category": "qa"},
        example("qa", TEXT),
    ),
    "superni": (
        "",
        {"task_name": "task1", "id": "1", "definition": TEXT, "inputs": "x", "targets": "Là-bas, \t→"},
        example("task1", TEXT, "x"),
    ),
    "flan": (
        "",
        {"inputs": TEXT, "targets": "Là-bas, \t→", "_task_name": "bitext", "_task_source": "Flan2021"},
        example("bitext", "", TEXT, domain="Flan2021"),
    ),
    "messages of one turn": (
        "",
        {"messages": [TURNS[3], {"role": "assistant", "content": "Là-bas, \t→"}]},
        example(TASK, TEXT),
    ),
    "messages": (
        "",
        {"messages": [*TURNS, {"role": "assistant", "content": "Là-bas, \t→"}]},
        example(TASK, TEXT, turns=(("system", "be kind"), ("user", "hi"), ("assistant", "hello"))),
    ),
    "multiple-choice": (
        "",
        {"question": TEXT, "choices": ["b, c", "a"], "answer": "B", "subject": "exam"},
        example("exam", TEXT, "OPTIONS:\n- b, c\n- a", "a", choices=("b, c", "a")),
    ),
    "multiple-choice with labels and context": (
        "",
        {"question": TEXT, "context": "x", "choices": {"text": ["b", "a"], "label": ["1", "2"]}, "answerKey": "2"},
        example(TASK, TEXT, "x\nOPTIONS:\n- b\n- a", "a", choices=("b", "a")),
    ),
    "pairs": (
        "instruction=frage,output=antwort,task='qa',input=der text",
        {"frage": TEXT, "der text": "x", "antwort": "Là-bas, \t→"},
        example("qa", TEXT, "x"),
    ),
    "pairs and a column of a field's name": (
        "instruction='Answer.', input=frage, choices=wahl",
        {"frage": TEXT, "output": "ja", "wahl": ["ja", "nein"]},
        example(TASK, "Answer.", TEXT, "ja", choices=("ja", "nein")),
    ),
    "numbers in pairs": (
        "output=stars,task='rate'",
        {"input": TEXT, "stars": 4},
        example("rate", "", TEXT, "4"),
    ),
}


def load(data, columns="", **limits):
    read_data.cache_clear()
    return load_examples(
        str(data), limits.get("train", 9), limits.get("evaluation", 9), "test", seed=0, columns=columns
    )


@pytest.mark.parametrize("case", MAPPINGS)
@pytest.mark.parametrize("suffix", [*FORMATS, "directory"])
def test_every_format_reads_every_mapping(tmp_path, suffix, case):
    columns, row, expected = MAPPINGS[case]
    if suffix == "directory":
        write_rows(tmp_path / TASK / "test-00000-of-00001.jsonl", [row])
        assert load(tmp_path / TASK, columns) == (expected,)
        return
    path = write_rows(tmp_path / f"{TASK}.{suffix}", [row | {"split": "test"}])
    assert load(path, columns) == (expected,)


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_stand_where_the_message_says(tmp_path, suffix):
    rows = [{"task": "t", "input": f"line\nbreak {n}", "output": None if n == 2 else "o"} for n in range(4)]
    path = write_rows(tmp_path / f"mine.{suffix}", rows)
    with pytest.raises(BadRowError) as error:
        load(path)
    place = {"json": "row 3 (line 12)", "csv": "line 6", "tsv": "line 6", "parquet": "row 3"}
    where = place.get(suffix.removesuffix(".gz"), "line 3")
    assert str(error.value) == f"{path}, {where} has no 'output': expected a text; add it"


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_has_no_examples(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    if suffix == "parquet":
        columns = {key: pyarrow.array([], "string") for key in ("task", "input", "output")}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        path.write_bytes(gzip.compress(b"") if suffix.endswith(".gz") else b"")
    with pytest.raises(ValueError, match=r"has no examples of the splits train, test \(no rows\): give data with some"):
        load(path)


@pytest.mark.parametrize("text", ["[]", " [\n]\n", '{"data": []}', "\n\n", '{"Definition": ["d"], "Instances": []}'])
def test_json_without_rows_has_no_examples(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=r"\(no rows\)"):
        load(tmp_path / "mine.json")


ROW = {"task": "t", "input": "a", "output": "b", "split": "test"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ROW]),
        json.dumps({"version": "1", "data": [ROW], "more": {"a": [1]}}),
        json.dumps({"rows": [ROW]}, indent=2),
        json.dumps(ROW) + "\n" + json.dumps(ROW | {"output": "c"}) + "\n",  # JSON lines that are called .json
        "\n\n" + json.dumps([ROW], indent=4) + "\n\n",
        "\ufeff" + json.dumps([ROW]),
    ],
)
def test_json_is_a_list_or_an_object_that_holds_one_or_lines(tmp_path, text):
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    assert load(tmp_path / "mine.json")[0] == Example("test", "t", "t", "", "", "a", "b")


def test_a_json_list_longer_than_a_chunk_is_read_whole(tmp_path, monkeypatch):
    rows = [ROW | {"input": "ä" * n, "number": 10**n, "list": [n, [n]]} for n in range(40)]
    for chunk in (1, 2, 3, 7, 50, 1 << 16):
        monkeypatch.setattr("common.data.json_file.CHUNK", chunk)
        for indent in (None, 1):
            (tmp_path / "mine.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
            found = list(open_table(tmp_path / "mine.json").rows)
            assert [row for _, row in found] == rows
            line = 1 if indent is None else 2 + 13 * 39
            assert found[39][0].endswith(f"row 40 (line {line})")


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5])
def test_a_number_that_goes_on_in_the_next_chunk_is_one_item(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("common.data.json_file.CHUNK", chunk)
    (tmp_path / "mine.json").write_text('[12345, {"a": 1}]')
    (_, number), (_, row) = open_table(tmp_path / "mine.json").rows
    assert isinstance(number, BadRowError) and row == {"a": 1}


def test_an_empty_cell_is_a_value_that_is_not_there(tmp_path):
    (tmp_path / "mine.csv").write_text("task,input,output,split,domain\nt,x,b,,\n")
    assert load(tmp_path / "mine.csv") == (Example("train", "t", "t", "", "", "x", "b"),)


def test_a_task_of_super_natural_instructions_is_read_as_it_comes(tmp_path):
    content = {
        "Contributors": ["A"],
        "Categories": ["Question Answering"],
        "Domains": ["Wikipedia", "News"],
        "Definition": ["Say what it is."],
        "Positive Examples": [{"input": "p", "output": "q", "explanation": "r"}],
        "Instances": [{"id": "1", "input": "a", "output": ["b", "c"]}, {"id": "2", "input": "d", "output": ["e"]}],
        "Instance License": ["MIT"],
    }
    path = tmp_path / "task001_what.json"
    for indent in (None, 4):
        path.write_text(json.dumps(content, indent=indent))
        found = load(path)
        assert {(e.task, e.domain, e.instruction, e.input, e.output) for e in found} == {
            ("task001_what", "Wikipedia", "Say what it is.", "a", "b"),
            ("task001_what", "Wikipedia", "Say what it is.", "d", "e"),
        }
    path.write_text(json.dumps(content | {"Domains": []}))
    assert {e.domain for e in load(path)} == {"Question Answering"}


def test_a_files_ending_is_known_in_any_case(tmp_path):
    assert [suffix_of(tmp_path / name) for name in ("a.JSONL", "b.json.gz", "c.txt", "d.gz", "jsonl")] == [
        ".jsonl",
        ".json.gz",
        "",
        "",
        "",
    ]
    assert [stem_of(tmp_path / name) for name in ("a.b.JSONL", "c.csv.gz", "d")] == ["a.b", "c", "d"]


def test_objects_of_json_lines_are_read_without_a_mapping(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"a": 1}\n\n{"b": 2}\n')
    assert list(read_objects(tmp_path / "q.jsonl")) == [
        (f"{tmp_path / 'q.jsonl'}, line 1", {"a": 1}),
        (f"{tmp_path / 'q.jsonl'}, line 3", {"b": 2}),
    ]


# Two hashes of every row in a dict and a set, whose tables double as they grow; the examples themselves are few.
BYTES_PER_ROW = 250
FIXED_BYTES = 2**20  # the kept examples, a chunk of the file


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "num_rows"), [("jsonl", 100_000), ("json", 20_000), ("csv", 20_000)])
def test_many_rows_are_read_in_bounded_memory(tmp_path, suffix, num_rows):
    path = tmp_path / f"many.{suffix}"
    padding = "x" * 1000
    with open(path, "w") as file:
        file.write({"json": "[", "csv": "task,input,output\n"}.get(suffix, ""))
        for number in range(num_rows):
            row = {"task": f"t{number % 4}", "input": f"{number} {padding}", "output": "o"}
            line = ",".join(row.values()) if suffix == "csv" else json.dumps(row)
            file.write(line + ("," if suffix == "json" and number < num_rows - 1 else "") + "\n")
        file.write("]" if suffix == "json" else "")
    read_data.cache_clear()
    tracemalloc.start()
    reading = read_data(str(path), 20, 10, "test", 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reading.counts.num_rows == num_rows
    assert len(reading.examples) == 4 * 30
    assert peak < FIXED_BYTES + num_rows * BYTES_PER_ROW < path.stat().st_size / 3


@pytest.mark.slow
def test_parquet_is_read_in_bounded_memory(tmp_path):
    rng, pool = random.Random(0), pyarrow.default_memory_pool()
    kinds = pyarrow.schema(dict.fromkeys(("task", "input", "output"), "string"))
    with pyarrow.parquet.ParquetWriter(tmp_path / "many.parquet", kinds) as file:
        for start in range(0, 20_000, 500):
            texts = [f"{number} {rng.getrandbits(8000):x}" for number in range(start, start + 500)]
            file.write_batch(pyarrow.record_batch([["t"] * 500, texts, ["o"] * 500], schema=kinds))
    before = pool.max_memory()
    read_data.cache_clear()
    reading = read_data(str(tmp_path / "many.parquet"), 20, 10, "test", 0)
    assert reading.counts.num_rows == 20_000
    assert pool.max_memory() <= max(before, 8 * 2**20) < (tmp_path / "many.parquet").stat().st_size / 3
