"""An address that cannot be used is refused with its reason: it is taken, it is another machine's, or it is
forbidden."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.config import Config, ServeSettings, check, load, unix_path
from daemon.process.children import Account, launch
from daemon.rpc.addresses import check_addresses, look

ROOT = Path(__file__).resolve().parents[3]


def test_each_reason_has_its_own_words(tmp_path: Path) -> None:
    """The reasons are a listener, another machine's address, an unknown name, a folder and a file."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert look(f"127.0.0.1:{port}").says == "another process listens there already"
        assert look(f"localhost:{port}").says == "another process listens there already", (
            "one of a name's addresses is enough"
        )
    assert look("127.0.0.1:0") == ("", "")
    assert look("192.0.2.1:50061").says == "this machine does not have the address 192.0.2.1"
    assert "has no address here" in look("no-such-host.invalid:50061").says
    (tmp_path / "file").touch()
    assert look(f"unix:{tmp_path}/file").says == f"{tmp_path}/file is a file and no socket"
    assert look(f"unix:{tmp_path}/new.sock") == ("", "")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "s.sock"))
        assert look(f"unix:{tmp_path}/s.sock") == ("", ""), "left behind: npcd replaces it"
        one.listen(1)
        assert look(f"unix:{tmp_path}/s.sock", "--http").says == "another process listens there already"


@pytest.mark.skipif(os.geteuid() != 0, reason="this user cannot become another one")
@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("127.0.0.1:80", "port 80 is below 1024"),
        ("unix:{}/n.sock", "cannot be written to by npcd's user (number 54321)"),
    ],
)
def test_a_forbidden_address_is_reported_as_forbidden(where: str, says: str, tmp_path: Path) -> None:
    """It is not reported as another running npcd."""
    if "80" in where and int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("this machine: anybody may listen at port 80")
    code = f"from daemon.rpc.addresses import look; print(look({where.format(tmp_path)!r}))"
    command = launch([sys.executable, "-c", code], Account("x", 54_321, 54_321, reads_all=True), 9)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert says in done.stdout and "another npcd" not in done.stdout


def test_a_relative_socket_is_where_the_daemon_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """unix:run/x.sock is relative, as gRPC's clients read it. Two slashes are refused, as gRPC's clients do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert unix_path("unix:run/x.sock") == f"{tmp_path}/run/x.sock"
    assert unix_path("unix:/run/x.sock") == unix_path("unix:///run/x.sock") == "/run/x.sock"
    load(None, ["serve.listen=unix:run/x.sock"], {})
    for wrong in (
        "unix://run/x.sock",
        "unix:",
        "http://127.0.0.1:50061",
        "127.0.0.1:x",
        "127.0.0.1",
        "127.0.0.1:70000",
    ):
        with pytest.raises(ConfigError, match=r"serve\.listen: '.*' must be "):
            load(None, [f"serve.listen={wrong}"], {})
    with pytest.raises(ConfigError, match=r"has \d+ bytes, a socket's path 107 at most"):
        load(None, [f"serve.listen=unix:run/{'x' * 120}.sock"], {})
    with pytest.raises(ConfigError, match=f"the folder {tmp_path}/none does not exist"):
        load(None, ["serve.listen=unix:none/x.sock"], {})


def test_an_address_that_is_given_twice_is_not_another_npcd() -> None:
    """gRPC and the probes have the same port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match=f"serve.http: {where} is given twice"):
        check_addresses(ServeSettings(listen=(where,), http=where))
    check_addresses(ServeSettings(listen=("127.0.0.1:0", "127.0.0.1:0"), http="127.0.0.1:0"))


@pytest.mark.parametrize("setting", ["serve.listen", "serve.http"])
def test_a_zero_byte_in_an_address_is_said(setting: str) -> None:
    """No socket's path and no host may contain one."""
    for where in ("unix:/tmp/a\\u0000b", "a\\u0000b:1"):
        with pytest.raises(ConfigError, match=rf"{setting}: .* has a zero byte"):
            load(None, [f'{setting}="{where}"'], {})


@pytest.mark.parametrize("said", ["off", "Off", ""])
def test_probes_are_switched_off_as_stores_are(said: str) -> None:
    """`--http off` works as `--redis off` does."""
    config = load(None, [f'serve.http="{said}"'], {})
    assert config.serve.http == ""
    check(config)
    assert Config().serve.http
