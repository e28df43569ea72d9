"""Containers cannot run everywhere: that their files are valid and what they start is understood can be tested."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import typer
import yaml

from simulations.cli import app
from tests.deployment.deployed import BARE_SERVER

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
# What Compose's schema allows of what is used here.
KEYS = {"build", "command", "entrypoint", "user", "depends_on", "restart", "profiles", "volumes", "deploy", "ports"}


def parse(words: list[str]) -> None:
    """Parse words as the command line does, up to the call."""
    command: click.Command = typer.main.get_command(app)
    assert words[0] == "fedmops"
    context = command.make_context("fedmops", words[1:2], resilient_parsing=True)
    for depth in range(1, len(words)):
        if not isinstance(command, click.Group):
            command.make_context(words[depth - 1], words[depth:], parent=context)
            return
        found = command.get_command(context, words[depth])
        assert found is not None, words[depth]
        command = found


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_an_image_a_part_and_a_command_that_is_understood(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= KEYS
    assert (ROOT / service["build"]["dockerfile"]).is_file() and service["build"]["context"] == "."
    assert service.get("restart", "no") in ("no", "unless-stopped")
    assert all(dependency in SERVICES for dependency in service.get("depends_on", []))
    part, inside = service["volumes"][0].split(":")
    assert re.fullmatch(r"\./federation/(server|control|node-\d)", part)
    parse([*service.get("entrypoint", []), *service.get("command", [])])
    assert inside == [*service.get("entrypoint", []), *service.get("command", [])][3]
    for volume in service["volumes"][1:]:
        assert volume.split(":")[0] in COMPOSE["volumes"]


def test_a_word_that_is_no_command_would_be_found() -> None:
    with pytest.raises(AssertionError, match="nod"):
        parse(["fedmops", "deploy", "nod", "/deployment"])
    with pytest.raises(click.UsageError):
        parse(["fedmops", "deploy", "node", "/deployment", "more"])


def test_who_reaches_the_port_may_submit_code_so_it_is_open_to_this_machine_alone() -> None:
    assert SERVICES["server"]["ports"] == ["127.0.0.1:8000:8000"]


@pytest.mark.parametrize("image", ["server", "client"])
def test_images_hold_the_app_and_what_it_pins(image: str) -> None:
    said = (ROOT / image / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"COPY {package} {package}\n" in said
    wanted = {wish.replace("[simulation]", "") for wish in project["project"]["dependencies"]}
    installed = re.findall(r'"([a-z-]+[=><][^"]+)"', said)
    assert set(installed) <= wanted
    if image == "server":
        assert installed and not any(wish.startswith(("torch", "transformers", "peft")) for wish in installed)


def test_what_runs_on_a_server_needs_nothing_that_its_image_has_not() -> None:
    code = """
import server.app, simulations.cli, simulations.clients_plot, simulations.run_report
from server.run_directory import versions
print(sorted(versions()))
import torch
"""
    bare = os.environ | {"PYTHONPATH": str(BARE_SERVER)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.stdout == "['commit', 'fedmops', 'flwr', 'numpy']\n", done.stderr
    assert done.stderr.endswith("No module named 'torch'\n")  # or it would prove nothing
