"""Settings come from file, environment and flags in that order, and an error gives the allowed values."""

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.words import AUTO
from daemon.config import Config, load
from daemon.main import main
from npcd import __version__


def test_defaults_are_valid_and_point_at_the_shipped_model() -> None:
    """`npcd serve` works without any setting."""
    config = load(None, environment={})
    assert config == Config()
    assert config.engine.model.name == "npcd-demo.gguf"


def test_later_sources_win(tmp_path: Path) -> None:
    """A flag beats the environment, which beats the file."""
    file = tmp_path / "npcd.toml"
    file.write_text('[serve]\nlisten = ["127.0.0.1:1"]\nhttp = "127.0.0.1:2"\n[intents.cadence]\nactive_hz = 3\n')
    config = load(file, environment={})
    assert (config.serve.listen, config.serve.http, config.intents.cadence.active_hz) == (
        ("127.0.0.1:1",),
        "127.0.0.1:2",
        3.0,
    )
    env = {"NPCD_SERVE__HTTP": "127.0.0.1:3", "NPCD_ENGINE__THREADS": "2", "OTHER": "x"}
    config = load(file, environment=env)
    assert (config.serve.http, config.engine.threads) == ("127.0.0.1:3", 2)
    config = load(file, ["serve.http=127.0.0.1:4", "engine.flash_attention=on"], env)
    assert (config.serve.http, config.engine.flash_attention) == ("127.0.0.1:4", "on")


def test_a_number_may_be_auto() -> None:
    """The word is taken where a number is measured at the start, and another word is refused."""
    config = load(None, ["engine.sequences=auto", "engine.context_len=700", "scheduler.kv.ram_mib=auto"], {})
    assert (config.engine.sequences, config.engine.context_len, config.scheduler.kv.ram_mib) == (AUTO, 700, AUTO)
    with pytest.raises(ConfigError, match=r"'engine\.sequences' must be a whole number or auto, not 'some'"):
        load(None, ["engine.sequences=some"], {})
    with pytest.raises(ConfigError, match=r"'engine\.threads' must be a whole number, not 'auto'"):
        load(None, ["engine.threads=auto"], {})


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("serve.lissten=127.0.0.1:1", "unknown setting 'serve.lissten'; did you mean 'serve.listen'"),
        ("nonsense.key=1", "unknown setting 'nonsense'"),
        (
            "intents.carry.late_ms=100",
            "'intents.carry' is no setting any more; the pace is measured: give pace.late_ms",
        ),
        ("pace.talk_share=1", "pace.talk_share: 1, must be 0.1 to 0.9"),
        ("speculation.drafts=some", "speculation.drafts: 'some', must be off, ngram or model"),
        ("speculation.drafts=model", "a GGUF file belongs to speculation.drafts = 'model'"),
        ("speculation.draft_model=x.gguf", "give both or none"),
        ("speculation.tiers=iron", "'iron', must be gold, silver or bronze"),
        ("speculation.tokens_max=0", "speculation.tokens_max: 0, must be 1 to 16"),
        ("speculation.match_min=9", "speculation.match_min: 9, must be 1 to speculation.match_max"),
        ("engine.threads=many", "'engine.threads' must be a whole number, not 'many'"),
        ("engine.threads=true", "'engine.threads' must be a whole number, not True"),
        ("engine.threads=-3", "engine.threads: -3, must be 0 to 512"),
        ("engine.threads=999", "engine.threads: 999, must be 0 to 512"),
        ("serve.drain_s=soon", "'serve.drain_s' must be a number, not 'soon'"),
        ("serve.log_json=1", "'serve.log_json' must be true or false, not 1"),
        ("serve.log_level=1", "'serve.log_level' must be a text in quotes, not 1"),
        ("sequences=5", "unknown setting 'sequences'; did you mean 'engine.sequences'?"),
        ("engine_threads=5", "unknown setting 'engine_threads'; did you mean 'engine.threads'?"),
        ("serve=5", "'serve' is a section"),
        ("serve.listen=127.0.0.1", "must be host:port or unix:/path"),
        ("serve.listen=127.0.0.1:99999", "must be host:port or unix:/path"),
        ("serve.listen=0.0.0.0:50061", "reachable from elsewhere; set serve.tokens_file"),
        ("serve.http=:80", "must be host:port"),
        ("serve.listen=:50061", "must be host:port"),
        ("serve.tls_client_ca=ca.pem", "client certificates need TLS"),
        ("serve.listen=unix:/nowhere/at/all.sock", "does not exist"),
        (f"serve.listen=unix:/tmp/{'x' * 120}", "107 at most"),
        ("scheduler.window.window_ms=11", "must be 1 to 10"),
        ("intents.cadence.active_hz=0.0", "intents.cadence.active_hz: 0, must be 0.1 to 20"),
        ("intents.cadence.warm_hz=3", "intents.cadence.warm_hz: 3, must be 0.01 to intents.cadence.active_hz (2)"),
        ("engine.sequences=10", "must exceed"),
        ("serve.tls_key=x", "belong together"),
        ("serve.drain_s=nan", "must be a finite number"),
        ("serve.drain_s=-1", "must be 0 to 3600 seconds"),
        ("serve.hang_s=0.1", "must be 0.5 to 3600 seconds, or 0"),
        ("intents.ttl_ms=-1", "must be 0 to"),
        ("intents.ttl_ms=4294967296", "must be 0 to"),
        ("intents.blend_ms=-1", "must be 0 to"),
        ("intents.blend_ms=4294967296", "must be 0 to"),
        ("serve.log_level=loud", "must be debug, info, warning or error"),
        ("engine.threads", "must be section.key=value"),
        ("scheduler.costs.prior_ns=[1, 2]", "'scheduler.costs.prior_ns' must be a list of 5 numbers"),
        ('scheduler.costs.prior_ns=["1", "2", "3", "4", "5"]', "must be a number, not '1'"),
    ],
)
def test_wrong_settings_say_what_is_wrong(assignment: str, said: str) -> None:
    """The error is one line that names the setting."""
    with pytest.raises(ConfigError) as caught:
        load(None, [assignment], {})
    assert said in str(caught.value)


def test_files_that_are_not_there_or_not_toml(tmp_path: Path) -> None:
    """The error names the file and the reason."""
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", environment={})
    bad = tmp_path / "bad.toml"
    bad.write_text("[serve\n")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load(bad, environment={})


@pytest.mark.parametrize(("section", "name"), [("recent", "redis"), ("archive", "postgres")])
def test_a_stores_url_has_one_place(section: str, name: str) -> None:
    """A URL without effect is refused, with the setting that has one."""
    with pytest.raises(ConfigError, match=rf"memory\.{section}\.url: give it as memory\.{name}"):
        load(None, [f"memory.{section}.url=redis://x"], environment={})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "1" + "0" * 400])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    """That holds for any setting, and for numbers that are infinite or too long."""
    for setting in ("serve.drain_s", "speculation.retry_s", "scheduler.planner.gold_step_ms", "memory.recent.op_s"):
        with pytest.raises(ConfigError, match=f"'{setting}' must be a "):
            load(None, [f"{setting}={value}"], {})
    with pytest.raises(ConfigError, match=r"'engine\.sequences' must be "):
        load(None, [f"engine.sequences={value}"], {})


def test_version_is_a_flag_too(capsys: pytest.CaptureFixture[str]) -> None:
    """`npcd --version` works as `npcd version` does."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code in (0, None)
    said = capsys.readouterr().out
    assert main(["version"]) == 0
    assert said == capsys.readouterr().out == f"npcd {__version__}\n"
