"""What a data set's name means: a file, a directory, a data set of the hub."""

import json

import datasets
import pytest
from table_files import write_rows

from common.data.hub_name import HubName, parse_hub_name
from common.data.load import load_examples, read_data
from common.data.prompt_hash import position
from common.data.sources import check_data_name, parts_of, split_named


def rows(split, count=40):
    return [{"instruction": f"{split} {number}", "output": "o"} for number in range(count)]


def load(data, split="test", **more):
    read_data.cache_clear()
    return load_examples(str(data), 999, 999, split, seed=0, **more)


def by_split(examples):
    found = {}
    for example in examples:
        found.setdefault(example.split, set()).add(example.instruction.split()[0])
    return found


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (["train"], "train"),
        (["train-00000-of-00002"], "train"),
        (["Train_data"], "train"),
        (["data", "dev"], "validation"),
        (["val.1"], "validation"),
        (["valid"], "validation"),
        (["validation2"], "validation"),
        (["test", "a"], "test"),
        (["train", "test"], "test"),  # the nearest word counts
        (["trains"], None),
        (["testament"], None),
        (["my-test"], None),
        (["task001"], None),
    ],
)
def test_a_name_tells_a_split_by_its_first_word(words, split):
    assert split_named(words) == split


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train-00000-of-00001.parquet", "dev-0.parquet", "test-0.parquet"),
        ("train/a.csv", "val/a.csv", "test/a.csv"),
        ("data/train.json.gz", "data/valid.json.gz", "data/test.json.gz"),
    ],
)
def test_files_and_directories_name_splits(tmp_path, names):
    for name, split in zip(names, ("train", "validation", "test"), strict=True):
        write_rows(tmp_path / "mine" / name, rows(split))
    (tmp_path / "mine" / "README.md").write_text("no data")
    (tmp_path / "mine" / ".cache").mkdir()
    (tmp_path / "mine" / ".cache" / "train.jsonl").write_text("no data either")
    assert by_split(load(tmp_path / "mine")) == {"train": {"train"}, "test": {"test"}}
    found = load(tmp_path / "mine", "validation")
    assert by_split(found) == {"train": {"train"}, "validation": {"validation"}}
    assert {example.task for example in found} == {"mine"}  # train is no task
    assert len(found) == 80  # validation is named, so nothing is held out


def test_what_a_row_names_counts_more_than_its_files_name(tmp_path):
    write_rows(tmp_path / "train.jsonl", rows("train"))
    write_rows(tmp_path / "test.jsonl", [*rows("test"), {"instruction": "moved", "output": "o", "split": "train"}])
    assert "moved" in by_split(load(tmp_path))["train"]


def test_files_without_splits_are_one_set_and_their_names_are_tasks(tmp_path):
    for name in ("add", "sub"):
        write_rows(tmp_path / f"{name}.jsonl", rows(name))
    found = load(tmp_path)
    assert {(e.task, e.domain, e.instruction.split()[0]) for e in found} == {
        ("add", "add", "add"),
        ("sub", "sub", "sub"),
    }
    assert {(e.split, position(e.prompt) >= 0.8) for e in found} == {("train", False), ("test", True)}


def test_without_a_test_split_training_rows_are_split_by_hash(tmp_path):
    write_rows(tmp_path / "train.jsonl", rows("train", 200))
    write_rows(tmp_path / "validation.jsonl", rows("validation"))
    found = load(tmp_path)
    assert by_split(found) == {"train": {"train"}, "test": {"train"}}
    assert {(e.split, position(e.prompt) >= 0.8) for e in found} == {("train", False), ("test", True)}
    assert len(found) == 200


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "{} holds no data: expected files that end in .jsonl, "),
        (("notes.txt", ".hidden.jsonl"), "{} holds no data: expected files"),
        (("train.jsonl", "more.jsonl"), "{}/more.jsonl names no split, but other files of {} do: expected train, "),
    ],
)
def test_a_directory_that_is_no_data_set_is_an_error(tmp_path, names, message):
    for name in names:
        write_rows(tmp_path / name, rows("a"))
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    assert str(error.value).startswith(message.format(tmp_path, tmp_path))


# --- The hub ---


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("owner/name", HubName("owner/name")),
        ("an-owner/a.name_2", HubName("an-owner/a.name_2")),
        ("owner/name:subset", HubName("owner/name", "subset")),
        ("owner/name@main", HubName("owner/name", revision="main")),
        ("owner/name:en-de@refs/pr/1", HubName("owner/name", "en-de", "refs/pr/1")),
        ("name", None),
        ("a/b/c", None),
        ("./name", None),
        ("/name", None),
        ("owner/", None),
        ("owner/name:", None),
        ("owner/name@", None),
        ("owner/name@v1:subset", None),
    ],
)
def test_a_hub_id_may_name_subset_and_revision(name, parsed):
    assert parse_hub_name(name) == parsed
    if parsed:
        assert str(parsed) == name
        check_data_name(name)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.jsonl", "data/nowhere.csv", "a/b/c", "owner/name:", "~/x"])
def test_a_name_that_is_nothing_is_an_error(name):
    with pytest.raises(ValueError, match=f"data '{name}' is neither 'skills' nor a file: give the path of a file"):
        check_data_name(name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Give out local files in the hub's place; return what was asked for."""
    asked = []
    real = datasets.load_dataset

    def load_dataset(name, subset, revision):
        asked.append((name, subset, revision))
        files = {path.stem: str(path) for path in (tmp_path / "hub").iterdir()}
        kind = "parquet" if next(iter(files.values())).endswith("parquet") else "json"
        return real(kind, data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_splits_of_the_hub_are_ours(hub, tmp_path):
    for split in ("train", "validation", "test", "extra"):
        write_rows(tmp_path / "hub" / f"{split}.jsonl", rows(split))
    found = load("owner/qa:en@v1", "validation")
    assert by_split(found) == {"train": {"train"}, "validation": {"validation"}}
    assert {example.task for example in found} == {"qa"}
    assert by_split(load("owner/qa")) == {"train": {"train"}, "test": {"test"}}
    assert hub == [("owner/qa", "en", "v1"), ("owner/qa", None, None)]


@pytest.mark.parametrize("split", ["train", "other"])
def test_without_a_test_split_the_hubs_rows_are_split_by_hash(hub, tmp_path, split):
    write_rows(tmp_path / "hub" / f"{split}.jsonl", rows(split, 100))
    found = load("owner/qa")
    assert by_split(found) == {"train": {split}, "test": {split}}
    assert {position(e.prompt) >= 0.8 for e in found if e.split == "test"} == {True}


def test_a_class_of_the_hub_is_its_name(hub, tmp_path):
    table = datasets.Dataset.from_dict({"text": [f"w {n}" for n in range(9)], "label": [n % 2 for n in range(9)]})
    (tmp_path / "hub").mkdir()
    table.cast_column("label", datasets.ClassLabel(names=["bad", "good"])).to_parquet(tmp_path / "hub" / "test.parquet")
    columns = "instruction='How is it?',input=text,output=label"
    assert [e.output for e in sorted(load("a/b", columns=columns), key=lambda e: e.input)] == ["bad", "good"] * 4 + [
        "bad"
    ]
    assert load(tmp_path / "hub", columns=columns)[0].instruction == "How is it?"  # as a file, too


def test_a_row_of_the_hub_is_named_by_split_and_number(hub, tmp_path):
    write_rows(tmp_path / "hub" / "train.jsonl", [*rows("train", 2), {"instruction": "a", "output": None}])
    with pytest.raises(ValueError, match=r"^owner/qa:en, train, row 3 has no 'output': expected a text; add it$"):
        load("owner/qa:en")
    assert len(load("owner/qa:en", skip_bad_rows=True)) > 0
    with pytest.raises(ValueError, match=r"^owner/qa, train has no column 'response', but 'instruction', 'output'"):
        load("owner/qa", columns="dolly")


def test_a_hub_that_cannot_be_reached_is_one_line():
    # The suite is offline; nothing of this name is in the cache.
    with pytest.raises(ValueError) as error:
        parts_of("no-owner-of-ours/no-name")
    assert str(error.value).startswith(
        "data 'no-owner-of-ours/no-name' is no file or directory here, and cannot be had from the hub ("
    )
    assert "expected owner/name:subset@revision; check name and network, or give a path" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_in_the_cache_is_read_offline(tmp_path, monkeypatch):
    """As in the cache after a download: datasets finds it by the name alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    table = datasets.Dataset.from_list([json.loads(json.dumps(row)) for row in rows("train", 50)])
    cached = tmp_path / "owner___qa" / "default" / "0.0.0" / "0123456789abcdef"
    cached.mkdir(parents=True)
    table.to_parquet(tmp_path / "qa.parquet")
    builder = datasets.load_dataset_builder("parquet", data_files=str(tmp_path / "qa.parquet"))
    builder.download_and_prepare(str(cached))
    for path in cached.glob("parquet-*"):
        path.rename(cached / path.name.replace("parquet-", "qa-", 1))
    assert by_split(load("owner/qa")) == {"train": {"train"}, "test": {"train"}}
