"""A chat model's words: does it act as a designer wants, and does it speak as the NPC and for nobody else?

Intents and replies go the daemon's way, from a world's definition to the engine, without the daemon around it. Nothing
here is a timing. The situations and lines are in real_situations.toml.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.choice import Node
from core.clock import now_ns
from core.observation import Observation, Percept
from core.script import Script, Section, SectionKind, player_line
from core.work import Chunk, Ended, Sampling, Work
from daemon.model import lay_out
from daemon.worlds.limits import WorldLimits
from daemon.worlds.policy_file import load_policy
from daemon.worlds.works import Works
from daemon.worlds.world import Npc, World
from daemon.worlds.worlds import Worlds
from engines.backend import Delivery
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from loadtests.bench.figures import Figures
from loadtests.scene import SCENES, load_scene
from npcd.v1 import npcs_pb2
from npcd_client import toml_text, world_from_toml
from prompts.caps import Caps
from prompts.layout import Layout, Tail
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.step_backend import StepBackend
from scheduler.ticket import Door
from tiers.policy import PolicyRow, evaluate
from tiers.promises import Promises
from tiers.routing import LLAMA, Routes

DATA = Path(__file__).with_name("real_situations.toml")
AT_ONCE = 16
CONTEXT_LEN = 1024
REPLIES = 300
REPLY_LEN = 32
TEMPERATURE = 0.7
ROUTES = Routes()
# A label is a capitalised name with a colon, at the beginning of a reply or of a line in it.
_LABEL = re.compile(r"(?:^|\n)\s*[\"(*]*[A-Z][\w' ]{0,27}:")
