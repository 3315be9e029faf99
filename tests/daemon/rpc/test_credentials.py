"""TLS and mTLS with certificates made by openssl, and credentials that change while the daemon serves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from core.errors import ConfigError
from daemon.config import Config, ServeSettings, check
from daemon.main import main
from daemon.rpc.credentials import Credentials, read_tls
from daemon.rpc.grpc_face import GrpcFace
from npcd.v1 import npcs_pb2, npcs_pb2_grpc
from npcd_client import Client, NpcdError
from tests.daemon.process.test_serve import Served
from tests.daemon.rig import Rig, gated, running, until
from tests.patience import PATIENCE_S

EC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
LIST = npcs_pb2.ListWorldsRequest()


@dataclass(frozen=True)
class Authority:
    """A CA of our own. Each name is a pair of files NAME.pem and NAME.key in its folder."""

    folder: Path

    def path(self, name: str) -> str:
        """The path of one of its files."""
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        """The contents of one of its files."""
        return (self.folder / name).read_bytes()

    def issue(self, name: str, *more: str, key: tuple[str, ...] = EC) -> None:
        """A certificate and its key, for a server on loopback or for a client."""
        openssl("req", "-x509", "-new", "-newkey", *key, "-nodes", "-keyout", self.path(f"{name}.key"),
                "-out", self.path(f"{name}.pem"), "-days", "2", "-subj", f"/CN={name}",
                "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", *more)  # fmt: skip


def openssl(*arguments: str) -> None:
    """Runs it."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def authority(folder: Path) -> Authority:
    """A CA in a new folder, with a server's and a client's certificate."""
    folder.mkdir()
    made = Authority(folder)
    made.issue("ca", "-addext", "basicConstraints=critical,CA:true")
    for name in ("server", "client"):
        made.issue(name, "-CA", made.path("ca.pem"), "-CAkey", made.path("ca.key"),
                   "-addext", "basicConstraints=critical,CA:false")  # fmt: skip
    return made


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """Two CAs that do not know each other."""
    if shutil.which("openssl") is None:
        pytest.skip("TLS was not tested: openssl is missing. On Debian: apt-get install -y openssl")
    folder = tmp_path_factory.mktemp("tls")
    return authority(folder / "one"), authority(folder / "other")


@pytest.fixture
def one(authorities: tuple[Authority, Authority], tmp_path: Path) -> Authority:
    """The first CA, in a folder of the test's own, whose files it may change."""
    shutil.copytree(authorities[0].folder, tmp_path / "tls")
    return Authority(tmp_path / "tls")


@pytest.fixture
def other(authorities: tuple[Authority, Authority]) -> Authority:
    """The second CA."""
    return authorities[1]


def tls(one: Authority, **more: Any) -> ServeSettings:
    """Settings with TLS on a port of loopback."""
    settings = ServeSettings(
        listen=("127.0.0.1:0",), tls_certificate=one.path("server.pem"), tls_key=one.path("server.key")
    )
    return replace(settings, **more)


def mtls(one: Authority, **more: Any) -> ServeSettings:
    """The same, with client certificates required."""
    return tls(one, tls_client_ca=one.path("ca.pem"), **more)


@asynccontextmanager
async def serving(settings: ServeSettings) -> AsyncIterator[tuple[Rig, GrpcFace, str]]:
    """A daemon with these settings, and its address."""
    check(replace(Config(), serve=settings))
    async with running(gated()) as rig:
        face = GrpcFace(settings)
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        try:
            yield rig, face, address
        finally:
            await face.stop(0)


async def greeted(address: str, trusts: Authority, client: Authority | None = None, token: str = "") -> str:
    """The Python client's result on a new connection: "ok", or the code of its error."""
    pair = (client.read("client.pem"), client.read("client.key")) if client else (None, None)
    async with Client(
        address,
        root_certificates=trusts.read("ca.pem"),
        certificate_chain=pair[0],
        private_key=pair[1],
        token=token,
        timeout_s=PATIENCE_S,
    ) as npcd:
        try:
            await npcd.list_worlds()
        except NpcdError as error:
            return error.code
        return "ok"


async def test_tls_answers_clients_that_trust_the_server(one: Authority, other: Authority) -> None:
    """A client that trusts another CA gets no answer, and neither does plain text."""
    async with serving(tls(one)) as (_, _, address):
        assert await greeted(address, one) == "ok"
        assert await greeted(address, other) == "UNAVAILABLE"
        async with grpc.aio.insecure_channel(address) as plain:
            with pytest.raises(grpc.aio.AioRpcError):
                await npcs_pb2_grpc.NpcsStub(plain).ListWorlds(LIST, timeout=PATIENCE_S)


async def test_mtls_accepts_clients_with_a_certificate(one: Authority, other: Authority) -> None:
    """Without a certificate, or with one of another CA, no call works. Tokens are not needed."""
    async with serving(mtls(one)) as (_, _, address):
        assert await greeted(address, one, one) == "ok"
        assert await greeted(address, one, None) == "UNAVAILABLE"
        assert await greeted(address, one, other) == "UNAVAILABLE"


async def test_npcd_kv_has_a_certificate_of_its_own(one: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    """With it the command line reaches a daemon that requires client certificates."""
    async with serving(mtls(one)) as (_, _, address):
        trusts = ["kv", "vale", "--target", address, "--ca", one.path("ca.pem")]
        pair = ["--cert", one.path("client.pem"), "--key", one.path("client.key")]
        assert await asyncio.to_thread(main, trusts) == 1
        assert await asyncio.to_thread(main, [*trusts, *pair]) == 0
        assert await asyncio.to_thread(main, [*trusts, *pair[:2]]) == 2
    told = capsys.readouterr()
    assert "npc0" in told.out and "--cert, --key and --ca belong together" in told.err


async def test_every_port_has_the_certificates_of_now(one: Authority, other: Authority) -> None:
    """When certificates are renewed on two ports, new connections get the new ones, and an open connection goes on."""
    settings = tls(one, listen=("127.0.0.1:0", "127.0.0.1:0"))
    async with running(gated()) as rig:
        face = GrpcFace(settings)
        addresses = await face.start()
        face.calls = rig.daemon.calls
        trusted = grpc.ssl_channel_credentials(one.read("ca.pem"))
        async with grpc.aio.secure_channel(addresses[0], trusted) as channel:
            stub = npcs_pb2_grpc.NpcsStub(channel)
            await stub.ListWorlds(LIST)
            for name in ("server.pem", "server.key"):
                shutil.copy(other.path(name), one.path(name))
            await face.credentials.read_again()
            for address in addresses:
                assert await greeted(address, other) == "ok"
                assert await greeted(address, one) == "UNAVAILABLE"
            await stub.ListWorlds(LIST)
        await face.stop(0)


async def test_client_cas_are_read_again(one: Authority, other: Authority) -> None:
    """A client of the old CA has no access any more, and one of the new CA has."""
    async with serving(mtls(one)) as (_, face, address):
        shutil.copy(other.path("ca.pem"), one.path("ca.pem"))
        old = Authority(other.folder.parent / "one")
        await face.credentials.read_again()
        assert await greeted(address, old, other) == "ok"
        assert await greeted(address, old, old) == "UNAVAILABLE"


def spoil_key(one: Authority, other: Authority) -> None:
    shutil.copy(other.path("server.key"), one.path("server.key"))


def cut_off(one: Authority, other: Authority) -> None:
    Path(one.path("server.pem")).write_bytes(one.read("server.pem")[:100])


def remove(one: Authority, other: Authority) -> None:
    os.unlink(one.path("server.key"))


def empty(one: Authority, other: Authority) -> None:
    Path(one.path("server.pem")).write_bytes(b"")


def encrypt(one: Authority, other: Authority) -> None:
    openssl("ec", "-aes256", "-passout", "pass:secret", "-in", one.path("server.key"), "-out", one.path("server.key"))


def spoil_ca(one: Authority, other: Authority) -> None:
    Path(one.path("ca.pem")).write_text("rubbish")


def forbid(one: Authority, other: Authority) -> None:
    os.unlink(one.path("server.key"))
    os.mkdir(one.path("server.key"))


BROKEN = [
    (spoil_key, "no pair"), (cut_off, "no pair"), (remove, "cannot read"), (empty, "has 0 bytes"),
    (encrypt, "is encrypted"), (spoil_ca, "no PEM certificate of a CA"), (forbid, "cannot read"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), BROKEN)
async def test_a_broken_file_changes_nothing_and_is_reported(
    one: Authority, other: Authority, spoil: Callable[[Authority, Authority], None], said: str
) -> None:
    """The old pair stays in use, and health reports the fault. After the file is mended, the new one is used. At a
    start it is an error."""
    whole = Authority(one.folder.with_name("whole"))
    shutil.copytree(one.folder, whole.folder)
    async with serving(mtls(one)) as (_, face, address):
        spoil(one, other)
        await face.credentials.read_again()
        assert await greeted(address, whole, whole) == "ok"
        (line,) = face.credentials.trouble
        assert said in line and "stay in use" in line
        with pytest.raises(ConfigError, match=said):
            GrpcFace(mtls(one))
        shutil.rmtree(one.folder)
        shutil.copytree(other.folder, one.folder)
        await face.credentials.read_again()
        assert await greeted(address, other, other) == "ok" and face.credentials.trouble == []


async def test_tokens_are_read_again(tmp_path: Path) -> None:
    """A new token is known, a removed one is not, and a broken file changes nothing; all without a restart."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('aaaaaaaaaaaaaaaa = "a"\n')
    settings = ServeSettings(listen=(f"unix:{tmp_path}/n.sock",), tokens_file=str(tokens))
    async with serving(settings) as (_, face, address):

        async def known(letter: str) -> bool:
            async with Client(address, token=letter * 16, timeout_s=PATIENCE_S) as npcd:
                try:
                    await npcd.list_worlds()
                except NpcdError as error:
                    return error.code != "UNAUTHENTICATED"
                return True

        assert await known("a") and not await known("b")
        tokens.write_text('bbbbbbbbbbbbbbbb = "b"\n')
        await face.credentials.read_again()
        assert await known("b") and not await known("a")
        tokens.write_text('bbbbbbbbbbbbbbbb = { tenant = "b", role = "king" }\n')
        await face.credentials.read_again()
        assert await known("b") and "must be game or operator" in face.credentials.trouble[0]
        assert "bbbbbbbb" not in face.credentials.trouble[0], "no token stands in what is told"


async def test_a_change_is_noticed_without_being_asked(one: Authority, other: Authority, tmp_path: Path) -> None:
    """That holds for a link that points elsewhere, too, which is how Kubernetes changes a secret."""
    link = tmp_path / "data"
    link.symlink_to(one.folder)
    mounted = Authority(link)
    async with serving(tls(mounted)) as (_, face, address):
        before = face.credentials.tls
        link.unlink()
        link.symlink_to(other.folder)
        await until(lambda: face.credentials.tls is not before, "the new pair")
        assert await greeted(address, other) == "ok"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ServeSettings(tls_client_ca="ca.pem"), "serve.tls_client_ca: client certificates need TLS"),
        (ServeSettings(tls_certificate="a.pem"), "belong together"),
        (ServeSettings(listen=("0.0.0.0:50061",)), r"serve.tls_client_ca with .* \(mTLS\)"),
        (
            ServeSettings(listen=("0.0.0.0:50061",), tls_certificate="a.pem", tls_key="a.key"),
            "reachable from elsewhere; set serve.tokens_file",
        ),
    ],
)
def test_settings_that_would_let_everybody_in_are_refused(settings: ServeSettings, said: str) -> None:
    """A client CA without TLS would be served in plain text, and TLS alone does not identify callers."""
    with pytest.raises(ConfigError, match=said):
        check(replace(Config(), serve=settings))


@pytest.mark.parametrize(
    "more",
    [
        {"tokens_file": "t.toml"},
        {"tls_certificate": "a.pem", "tls_key": "a.key", "tls_client_ca": "ca.pem"},
        {"tls_certificate": "a.pem", "tls_key": "a.key", "tokens_file": "t.toml"},
    ],
)
def test_beyond_loopback_tokens_or_client_certificates_are_enough(more: dict[str, str]) -> None:
    """Each of them identifies callers."""
    check(replace(Config(), serve=ServeSettings(listen=("0.0.0.0:50061", "[::]:50061"), **more)))  # type: ignore[arg-type]


def test_a_key_of_another_kind_fits_as_well(one: Authority) -> None:
    """RSA works, and so does a chain with the CA behind the certificate."""
    one.issue("rsa", "-CA", one.path("ca.pem"), "-CAkey", one.path("ca.key"), key=("rsa:2048",))
    assert read_tls(tls(one, tls_certificate=one.path("rsa.pem"), tls_key=one.path("rsa.key"))) is not None
    chain = one.folder / "chain.pem"
    chain.write_bytes(one.read("server.pem") + one.read("ca.pem"))
    found = read_tls(tls(one, tls_certificate=str(chain)))
    assert found is not None and found.certificate == chain.read_bytes()
    assert Credentials(ServeSettings()).tls is None


async def test_a_hang_up_reads_credentials_again_and_ends_nothing(
    one: Authority, other: Authority, tmp_path: Path
) -> None:
    """SIGHUP goes to the parent of a whole daemon, at once and while it serves. Renewed certificates are used then."""
    files = [f"serve.{name}={path}" for name, path in (
        ("tls_certificate", one.path("server.pem")), ("tls_key", one.path("server.key"))
    )]  # fmt: skip
    folder = tmp_path / "served"
    folder.mkdir()
    served = Served(folder, *files)
    try:
        await served.says("503 starting", "serving")
        served.process.send_signal(signal.SIGHUP)
        await served.says("serving")
        served.process.send_signal(signal.SIGHUP)
        await until(lambda: bool(served.events("credentials checked")), "it was looked at")
        shutil.copy(other.path("server.key"), one.path("server.key"))
        served.process.send_signal(signal.SIGHUP)
        await until(lambda: bool(served.events("credentials not read")), "a broken pair is told")
        shutil.copy(other.path("server.pem"), one.path("server.pem"))
        served.process.send_signal(signal.SIGHUP)
        await until(lambda: bool(served.events("credentials read again")), "the whole pair is taken")
        assert served.process.poll() is None and served.readiness() == "serving"
        assert not served.events("started again") and not served.events("stopping")
        served.process.terminate()
        assert await asyncio.to_thread(served.process.wait, PATIENCE_S) == 0
    finally:
        served.process.kill()
        served.process.wait()
