"""HTTPS: what others see of it, what the node's own commands trust, and another certificate while it runs."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import ipaddress
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from llm_node.keys import Scope, add
from support.node import PROGRAM, RunningNode, command, node_environment, running_node

MODEL = "llm-node-demo"
HANDSHAKE_SECONDS = 2.0


def in_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    lock = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


def make_certificate(certificate: Path, key: Path) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llm-node")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, own.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(own, hashes.SHA256())
    )
    key.write_bytes(in_pem(own))
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))


def fingerprint(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


@dataclass
class Served:
    node: RunningNode
    certificate: Path
    key: Path

    def shown(self) -> str:
        """The certificate that whoever connects now is shown."""
        return fingerprint(ssl.get_server_certificate(self.node.address, timeout=30))

    def read_again(self, words: str) -> None:
        before = self.node.log_text().count(words)
        self.node.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while self.node.log_text().count(words) == before:
            assert time.monotonic() < deadline, self.node.log_text()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def served(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("tls")
    certificate, key = home / "cert.pem", home / "key.pem"
    make_certificate(certificate, key)
    arguments = ["--gpu-backend", "cpu", "--engines-dir", str(engines), "--tls-cert", str(certificate)]
    arguments += ["--tls-key", str(key), "--header-timeout", str(HANDSHAKE_SECONDS)]
    with running_node(home, arguments, certificate=certificate) as node:
        node.extra["home"] = home
        yield Served(node, certificate, key)


def test_answers_and_streams_are_what_they_are_without(served: Served) -> None:
    body = {"model": MODEL, "prompt": "An engine", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    whole = served.node.post("/v1/completions", body).json()["choices"][0]["text"]
    answer = served.node.post("/v1/completions", {**body, "stream": True})
    *chunks, done = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    texts = [json.loads(chunk)["choices"][0]["text"] for chunk in chunks]
    assert (done, "".join(texts)) == ("[DONE]", whole)
    assert len(texts) > 4, "the answer came in one piece"


def test_what_is_no_tls_gets_nothing_and_harms_nobody(served: Served) -> None:
    for sent in (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b""):
        with socket.create_connection(served.node.address, timeout=60) as plain:
            began = time.monotonic()
            plain.sendall(sent)
            # With what is none it ends at once, and with silence when the time for a handshake has passed.
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                answer = plain.recv(1000)
            assert not answer.startswith(b"HTTP")
            assert sent or time.monotonic() - began >= HANDSHAKE_SECONDS * 0.9
    assert served.node.get("/readyz").status == 200


def test_http_1_is_agreed_upon(served: Served) -> None:
    with socket.create_connection(served.node.address, timeout=60) as plain:
        context = ssl.create_default_context(cafile=str(served.certificate))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            assert secure.selected_alpn_protocol() == "http/1.1"
            assert secure.version() in ("TLSv1.2", "TLSv1.3")


def test_its_own_commands_know_it_and_others_ask_the_authorities(served: Served, tmp_path: Path) -> None:
    own = command(served.node, "ps")
    assert own.returncode == 0, own.stderr
    record = json.loads((served.node.extra["home"] / ".llm-node/node.json").read_text())
    assert record["url"] == served.node.url

    def named(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, "ps", "--node", served.node.url],
            env=node_environment(tmp_path, **environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    refused = named()
    assert refused.returncode == 6 and "certificate" in refused.stderr.lower(), refused.stderr
    trusted = named(SSL_CERT_FILE=str(served.certificate))
    assert trusted.returncode == 0, trusted.stderr


def test_what_it_says_to_type_works_with_keys_and_a_home_of_its_own(tmp_path: Path, engines: Path) -> None:
    certificate, secret = tmp_path / "it's.pem", add(tmp_path / "keys", "me", Scope.INFERENCE)
    make_certificate(certificate, tmp_path / "key.pem")
    arguments = ["--gpu-backend", "cpu", "--engines-dir", str(engines), "--home", str(tmp_path / "own home")]
    arguments += ["--tls-cert", str(certificate), "--tls-key", str(tmp_path / "key.pem")]
    arguments += ["--api-key-file", str(tmp_path / "keys")]
    environment = node_environment(tmp_path / "other", LLM_NODE_API_KEY=secret)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def answer(*shell: str) -> str:
        done = subprocess.run(
            shell, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with running_node(tmp_path / "node", arguments, certificate=certificate) as node:
        deadline = time.monotonic() + 60
        while "Requests need a key" not in (said := node.log_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        curl = re.search(r"^  (curl .*\n.*)$", said, re.MULTILINE)
        run = re.search(r"^  (llm-node .* run .*)$", said, re.MULTILINE)
        assert curl and run, said
        assert "[DONE]" in answer("sh", "-c", curl[1])
        assert "An engine" in answer("sh", "-c", f"{run[1]} 'What is an engine?'")
        python = said.partition("pip install openai`:\n")[2].partition("or in the terminal")[0]
        assert answer(sys.executable, "-c", textwrap.dedent(python)).strip()


def test_another_certificate_while_it_runs(served: Served) -> None:
    before = fingerprint(served.certificate.read_text())
    assert served.shown() == before
    kept = http.client.HTTPSConnection(*served.node.address, context=served.node.trust, timeout=60)
    kept.request("GET", "/healthz")
    kept.getresponse().read()
    key = served.key.read_text()
    make_certificate(served.certificate, served.key)
    served.read_again("read again: certificate: another")
    after = fingerprint(served.certificate.read_text())
    assert served.shown() == after != before
    kept.request("GET", "/healthz")
    assert kept.getresponse().status == 200, "who is connected stays so"
    kept.close()
    assert command(served.node, "ps").returncode == 0, "its commands know the new one"
    # One whose key is another's.
    good, _ = served.key.read_text(), served.key.write_text(key)
    served.read_again("are no certificate and its key")
    assert served.shown() == after
    served.key.write_text(good)
    served.node.trust = ssl.create_default_context(cafile=str(served.certificate))


@pytest.mark.parametrize(
    ("certificate", "key", "code", "words"),
    [
        ("cert.pem", None, 2, "--tls-cert and --tls-key go together"),
        (None, "key.pem", 2, "--tls-cert and --tls-key go together"),
        ("none.pem", "key.pem", 1, "none.pem cannot be read: No such file"),
        ("cert.pem", "none.pem", 1, "none.pem cannot be read: No such file"),
        ("key.pem", "key.pem", 1, "are no certificate and its key, in PEM"),
        ("cert.pem", "locked.pem", 1, "without a password"),
    ],
)
def test_files_that_are_none_are_named(
    served: Served, tmp_path: Path, certificate: str | None, key: str | None, code: int, words: str
) -> None:
    home = served.node.extra["home"]
    (home / "locked.pem").write_bytes(in_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    given = {"--tls-cert": certificate, "--tls-key": key}
    arguments = [part for flag, name in given.items() if name for part in (flag, str(home / name))]
    ended = subprocess.run(
        [PROGRAM, "--gpu-backend", "cpu", "--port", "0", *arguments],
        env=node_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert words in ended.stderr, ended.stderr
