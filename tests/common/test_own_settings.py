"""What clients may have of their own, from their node or from a file, and what they may not."""

from pathlib import Path

import pytest

from common.config import default_run_config
from common.own_settings import own_config, read_clients

DEFAULTS = default_run_config(Path(__file__).parents[2])
NODE = {"partition-id": 1, "num-partitions": 8}


@pytest.fixture
def run_config(tmp_path):
    """Return a function that builds a run whose clients' file holds a text."""

    def build(text):
        path = tmp_path / "clients.toml"
        path.write_text(text)
        return DEFAULTS | {"clients": str(path)}

    return build


def test_without_own_settings_a_client_has_the_runs():
    config = own_config(DEFAULTS, NODE)
    assert {name.replace("_", "-"): value for name, value in vars(config).items()} == DEFAULTS


def test_a_node_speaks_last(run_config):
    settings = run_config('[1]\nquantization = "int8"\nbatch-size = 4\n[2]\nbatch-size = 2')
    config = own_config(settings, NODE | {"quantization": "fp4"})
    assert (config.quantization, config.batch_size, config.partition) == ("fp4", 4, "by-task")
    assert own_config(settings, NODE | {"partition-id": 2}).batch_size == 2
    assert own_config(settings, NODE | {"partition-id": 3}).batch_size == DEFAULTS["batch-size"]


def test_who_has_own_data_owns_all_of_it(tmp_path, run_config):
    (tmp_path / "mine.jsonl").write_text("{}")
    config = own_config(DEFAULTS, NODE | {"data": str(tmp_path / "mine.jsonl")})
    assert (config.data, config.partition) == (str(tmp_path / "mine.jsonl"), "own")


def test_paths_are_relative_to_the_file(tmp_path, run_config, monkeypatch):
    (tmp_path / "mine.jsonl").write_text("{}")
    monkeypatch.chdir("/")
    settings = run_config('[0]\ndata = "mine.jsonl"\n[1]\ndata = "skills"\n[2]\ndata = "owner/name"')
    found = read_clients(settings)
    assert [found[client]["data"] for client in range(3)] == [str(tmp_path / "mine.jsonl"), "skills", "owner/name"]
    assert own_config(settings, NODE | {"partition-id": 0}).data == str(tmp_path / "mine.jsonl")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[8]\nbatch-size = 2", r"\[8\] must be a table of a client, a number from 0 to 7"),
        ("[one]\nbatch-size = 2", r"\[one\] must be a table of a client"),
        ("1 = 2", r"\[1\] must be a table"),
        (
            "[1]\nbatchsize = 2",
            r"\[1\]: unknown key 'batchsize': did you mean batch-size",
        ),
        ("[1]\nnum-experts = 2", r"\[1\]: num-experts must be the same for all clients, who may differ in data"),
        ("[1", "clients.toml is not TOML"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_table(run_config, text, reason):
    with pytest.raises(ValueError, match=reason):
        read_clients(run_config(text))


def test_a_missing_file_is_an_error():
    with pytest.raises(ValueError, match=r"clients 'no/where\.toml' is no file: give the path of a TOML file"):
        read_clients(DEFAULTS | {"clients": "no/where.toml"})


def test_a_wrong_value_names_the_client(run_config):
    with pytest.raises(ValueError, match="client 1: batch-size must be at least 1, got 0"):
        own_config(run_config("[1]\nbatch-size = 0"), NODE)
    with pytest.raises(ValueError, match="the node's configuration: seed must be the same for all clients"):
        own_config(DEFAULTS, NODE | {"seed": 3})
