"""A backbone's files: a directory, or the hub's cache; no network is asked here."""

import logging

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from common.hub import local_directory

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def patterns():
    """Return what files were asked for, by request."""
    return []


@pytest.fixture
def asked(tmp_path, monkeypatch, patterns):
    """Let the hub hold one model; return what was asked of it."""
    local_directory.cache_clear()
    calls = []

    def snapshot_download(name, revision, allow_patterns, local_files_only):
        calls.append((name, revision))
        patterns.append(allow_patterns)
        assert "*.bin" not in allow_patterns
        if name != "owner/name":
            raise LocalEntryNotFoundError("no\nsuch model")
        (tmp_path / COMMIT).mkdir(exist_ok=True)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    yield calls
    local_directory.cache_clear()


def test_a_directory_is_taken_as_it_is(tmp_path, asked):
    assert local_directory(str(tmp_path)) == tmp_path
    assert asked == []


def test_a_hub_id_is_asked_for_once_and_its_commit_is_told(tmp_path, asked, caplog):
    caplog.set_level(logging.INFO)
    assert local_directory("owner/name") == local_directory("owner/name") == tmp_path / COMMIT
    assert asked == [("owner/name", None)]
    assert f"owner/name is at commit {COMMIT}: write owner/name@{COMMIT} to stay with it" in caplog.text


def test_a_revision_is_asked_for(asked, caplog):
    caplog.set_level(logging.INFO)
    local_directory("owner/name@v1")
    assert asked == [("owner/name", "v1")]
    assert "is at commit" not in caplog.text


def test_what_the_hub_has_not_is_an_error_in_one_line(asked):
    with pytest.raises(ValueError, match=r"backbone 'owner/other' cannot be had from the hub \(no such model\): check"):
        local_directory("owner/other")


def test_weights_are_asked_for_unless_they_are_not_wanted(asked, patterns):
    local_directory("owner/name")
    local_directory("owner/name", weights=False)
    assert ["*.safetensors" in each for each in patterns] == [True, False]


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_offline_a_cache_is_enough(tmp_path, monkeypatch, revision):
    """The hub's own code, on a cache without a list of files."""
    local_directory.cache_clear()
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    (kept / "snapshots" / COMMIT).mkdir(parents=True)
    (kept / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert local_directory(f"owner/name{revision}") == kept / "snapshots" / COMMIT
    local_directory.cache_clear()
