"""Where a backbone lies: built in, a directory or the hub."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from common import backbone_source
from common.backbone_source import (
    architecture,
    built_in_directory,
    check_quantization,
    has_chat_template,
    locate,
    num_layers,
)


class Installed:
    """What importlib.metadata says of an installed fedmops."""

    def __init__(self, direct_url):
        self.direct_url = direct_url

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.direct_url

    def locate_file(self, path):
        return Path("/env/site-packages") / path


@pytest.mark.parametrize(
    ("direct_url", "root"),
    [
        ('{"url": "file:///home/a%20b/fedmops", "dir_info": {"editable": true}}', "/home/a b/fedmops"),
        ('{"url": "file:///home/fedmops", "dir_info": {}}', "/env/site-packages"),
        ('{"url": "https://host/fedmops.whl", "archive_info": {}}', "/env/site-packages"),
        (None, "/env/site-packages"),
    ],
    ids=["editable", "from a checkout", "from a wheel", "from an index"],
)
def test_the_built_in_backbone_lies_beside_the_installed_code(monkeypatch, direct_url, root):
    monkeypatch.setattr(backbone_source, "distribution", lambda name: Installed(direct_url))
    assert built_in_directory() == Path(root) / "common/models/skills"
    assert locate("skills") == f"{root}/common/models/skills"


def test_not_installed_is_an_error(monkeypatch):
    def distribution(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(backbone_source, "distribution", distribution)
    with pytest.raises(ValueError, match=r"fedmops is not installed in this environment: run `pip install -e \.`"):
        built_in_directory()


def test_directories_and_hub_ids_are_taken_as_they_are(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == str(tmp_path)
    assert locate("owner/name") == "owner/name"
    assert locate("owner/name@v1.0") == "owner/name@v1.0"


@pytest.mark.parametrize(
    "name", ["", "llama", "./models", "../owner/name", "/owner/name", "~/name", "a/b/c", "name/", "/"]
)
def test_other_names_are_errors(name):
    with pytest.raises(ValueError, match=r"unknown backbone .* expected 'skills', a directory with a config.json or a"):
        locate(name)


def test_a_directory_without_a_model_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(ValueError, match="unknown backbone 'owner/name'"):
        locate("owner/name")


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"num_hidden_layers": 6}, 6),
        ({"n_layer": 12}, 12),
        ({"text_config": {"num_hidden_layers": 9}, "num_hidden_layers": 3}, 9),
        ({}, None),
    ],
)
def test_the_number_of_layers_comes_from_the_config_on_disk(tmp_path, config, layers):
    (tmp_path / "config.json").write_text(json.dumps(config))
    described = architecture(str(tmp_path))
    assert described == config
    assert num_layers(described) == layers


def test_only_the_hub_knows_the_architecture_of_a_hub_id():
    assert architecture("owner/name") is None
    assert architecture("owner/name@main") is None


def test_stored_is_for_quantized_files_and_only_for_them():
    gptq = {"quantization_config": {"quant_method": "gptq"}}
    check_quantization("b", "stored", gptq)
    check_quantization("b", "none", {})
    with pytest.raises(ValueError, match="quantization must be stored for backbone 'b', whose files are quantized by"):
        check_quantization("b", "nf4", gptq)
    with pytest.raises(ValueError, match="quantization 'stored' is for checkpoints that are quantized: 'b' is not, "):
        check_quantization("b", "stored", {})


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("tokenizer_config.json", "{}", False),
        ("vocab.json", "{}", False),
    ],
)
def test_a_chat_template_is_found_without_the_tokenizer(tmp_path, name, content, found):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(content)
    assert has_chat_template(str(tmp_path)) is found


def test_the_hub_is_not_asked_for_a_chat_template():
    assert has_chat_template("owner/name") is None
    assert has_chat_template("skills") is False
