"""npcd from Python: a mind for every NPC, without a wait in the frame loop.

Client is for asyncio programs, FrameClient for games with a frame loop. See README.md for ten lines that run.
"""

from npcd_client.client import Client, Registration, new_turn_id
from npcd_client.conversation import Conversation
from npcd_client.errors import CallerError, DaemonFailed, NpcdError, Overloaded, TooLate, Unavailable
from npcd_client.frames import FrameClient, SoonTalk
from npcd_client.live import Live, LiveCounters, LiveProblem, LiveSettings
from npcd_client.perception import Activation, GameClock, Intent, IntentSource, Observation, Percept
from npcd_client.policy import PolicyAnswer, evaluate
from npcd_client.talking import Said, TalkEvent, TalkEventKind, TalkFinish, Timings
from npcd_client.v1.npcs_pb2 import QuestCard, RelationshipCard
from npcd_client.world import (
    ActionWord,
    Archetype,
    NpcSpec,
    Persona,
    Policy,
    PolicyRow,
    World,
    load_world,
    world_from_toml,
)

__version__ = "0.1.0"

__all__ = [
    "ActionWord",
    "Activation",
    "Archetype",
    "CallerError",
    "Client",
    "Conversation",
    "DaemonFailed",
    "FrameClient",
    "GameClock",
    "Intent",
    "IntentSource",
    "Live",
    "LiveCounters",
    "LiveProblem",
    "LiveSettings",
    "NpcSpec",
    "NpcdError",
    "Observation",
    "Overloaded",
    "Percept",
    "Persona",
    "Policy",
    "PolicyAnswer",
    "PolicyRow",
    "QuestCard",
    "Registration",
    "RelationshipCard",
    "Said",
    "SoonTalk",
    "TalkEvent",
    "TalkEventKind",
    "TalkFinish",
    "Timings",
    "TooLate",
    "Unavailable",
    "World",
    "evaluate",
    "load_world",
    "new_turn_id",
    "world_from_toml",
]
