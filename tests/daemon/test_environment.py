"""A variable that resembles a setting is refused with the right name; all others are ignored."""

import pytest

from core.errors import ConfigError
from daemon.config import load
from daemon.environment import setting_of

SETTINGS = ["engine.model", "engine.sequences", "serve.log_level", "memory.redis", "intents.cadence.active_hz"]


def test_a_variable_names_its_setting() -> None:
    """The name is NPCD_ and the setting's keys in capitals, with two underscores between them."""
    assert setting_of("NPCD_ENGINE__MODEL", SETTINGS) == ["engine", "model"]
    assert setting_of("NPCD_INTENTS__CADENCE__ACTIVE_HZ", SETTINGS) == ["intents", "cadence", "active_hz"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NPCD_ENGINE_MODEL", "NPCD_ENGINE__MODEL"),  # one underscore
        ("NPCD_MODEL", "NPCD_ENGINE__MODEL"),  # no section
        ("NPCD_SEQUENCE", "NPCD_ENGINE__SEQUENCES"),  # a missing letter
        ("NPCD_LOGLEVEL", "NPCD_SERVE__LOG_LEVEL"),
        ("NPCD_INTENTS_CADENCE_ACTIVE_HZ", "NPCD_INTENTS__CADENCE__ACTIVE_HZ"),
        ("NPCD_CADENCE_ACTIVE_HZ", "NPCD_INTENTS__CADENCE__ACTIVE_HZ"),
        ("npcd_engine__model", "NPCD_ENGINE__MODEL"),
        ("Npcd_Redis", "NPCD_MEMORY__REDIS"),
    ],
)
def test_a_near_miss_is_refused_with_the_right_name(name: str, meant: str) -> None:
    """The message names the given variable and the right one."""
    with pytest.raises(ConfigError) as caught:
        setting_of(name, SETTINGS)
    assert str(caught.value) == f"environment variable {name}: no setting has this name; did you mean {meant}?"


def test_a_name_that_several_settings_end_with_is_refused_with_some_of_them() -> None:
    """It names three at most."""
    with pytest.raises(ConfigError, match=r"did you mean NPCD_A__TIER or NPCD_B__TIER or NPCD_C__TIER\?$"):
        setting_of("NPCD_TIER", ["a.tier", "b.tier", "c.tier", "d.tier"])


@pytest.mark.parametrize(
    "name",
    [
        "PATH", "MODEL", "ENGINE__MODEL", "NPCD", "NPCD_", "NPCD_VERSION", "NPCD_IMAGE", "NPCD_CLEAN_ROOT", "NPC_MODEL",
        # Kubernetes sets these in each container of a namespace that has a Service called npcd, or npcd-redis.
        "NPCD_PORT", "NPCD_SERVICE_HOST", "NPCD_SERVICE_PORT", "NPCD_SERVICE_PORT_GRPC", "NPCD_PORT_50061_TCP",
        "NPCD_PORT_50061_TCP_ADDR", "NPCD_PORT_50061_TCP_PROTO", "NPCD_REDIS_SERVICE_HOST", "NPCD_REDIS_PORT",
        "NPCD_REDIS_PORT_6379_TCP",
    ],
)  # fmt: skip
def test_other_variables_are_left_alone(name: str) -> None:
    """These are variables of other programs, those of Kubernetes, and names that resemble no setting."""
    assert setting_of(name, SETTINGS) is None
    assert load(None, environment={name: "tcp://10.0.0.1:50061"})


def test_the_daemon_refuses_a_near_miss() -> None:
    """load() refuses it with --set and without."""
    with pytest.raises(ConfigError, match="did you mean NPCD_ENGINE__MODEL"):
        load(None, ["serve.log_level=info"], {"NPCD_MODEL": "mine.gguf"})
