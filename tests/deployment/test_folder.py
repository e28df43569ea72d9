"""The folder of a deployment: each machine's part holds what it needs and no other's secret."""

import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from deployment.folder import init, read_control, read_node, read_server


@pytest.fixture
def folder(tmp_path):
    init(tmp_path / "deployment", "fed.example.org", 8123, 2)
    return tmp_path / "deployment"


def secrets_in(part):
    return sorted(path.name for path in part.rglob("*") if path.is_file() and "PRIVATE KEY" in path.read_text())


def test_each_part_holds_its_own_secret_alone(folder):
    assert secrets_in(folder / "server") == ["server.key"]
    assert secrets_in(folder / "node-0") == secrets_in(folder / "node-1") == ["node.key"]
    assert secrets_in(folder / "control") == []
    assert (folder / "node-0" / "node.key").read_text() != (folder / "node-1" / "node.key").read_text()
    for name in ("ca.key", "server/server.key", "node-0/node.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert all(stat.S_IMODE(part.stat().st_mode) == 0o700 for part in (folder, *folder.iterdir()) if part.is_dir())


@pytest.mark.parametrize("name", ["fed.example.org", "localhost"])
def test_nodes_know_the_server_by_its_certificate(folder, name):
    authority = x509.load_pem_x509_certificate((folder / "node-0" / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((folder / "server" / "server.crt").read_bytes())
    verifier = PolicyBuilder().store(Store([authority])).build_server_verifier(x509.DNSName(name))
    verifier.verify(server, [])
    another = PolicyBuilder().store(Store([authority])).build_server_verifier(x509.DNSName("other.example.org"))
    with pytest.raises(VerificationError):
        another.verify(server, [])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server" / "server.crt", folder / "server" / "server.key")


def test_the_server_has_the_nodes_public_keys(folder):
    for number in range(2):
        private = serialization.load_ssh_private_key((folder / f"node-{number}" / "node.key").read_bytes(), None)
        public = serialization.load_ssh_public_key((folder / "server" / "nodes" / f"node-{number}.pub").read_bytes())
        assert private.public_key() == public


def test_the_parts_say_where_the_server_is_and_who_a_node_is(folder):
    assert read_server(folder / "server").port == 8123
    node = read_node(folder / "node-1")
    assert (node.superlink, node.partition_id, node.num_partitions, node.settings) == ("fed.example.org:8123", 1, 2, {})
    assert node.port != read_node(folder / "node-0").port
    control = read_control(folder / "control")
    assert (control.superlink, control.num_nodes) == ("fed.example.org:8123", 2)


def test_a_node_may_have_settings_of_its_own_but_not_any(folder):
    path = folder / "node-0" / "node.toml"
    path.write_text(path.read_text() + 'data = "/data/mine.jsonl"\n')
    assert read_node(folder / "node-0").settings == {"data": "/data/mine.jsonl"}
    path.write_text(path.read_text() + "num-rounds = 3\n")
    with pytest.raises(ValueError, match="a node has no num-rounds of its own: expected one of data"):
        read_node(folder / "node-0")


def test_keys_are_not_drawn_again_over_others(folder):
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        init(folder, "localhost", 8000, 2)


def test_a_part_of_another_kind_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"server is no node's part of a deployment: `fedmops deploy init` writes one"):
        read_node(folder / "server")
    (folder / "node-0" / "node.toml").write_text("superlink = ")
    with pytest.raises(ValueError, match=r"node.toml is not TOML"):
        read_node(folder / "node-0")
    (folder / "node-0" / "node.toml").write_text("superlink = 'a:1'")
    with pytest.raises(ValueError, match="partition-id is missing"):
        read_node(folder / "node-0")
