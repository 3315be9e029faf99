"""Asks a model what an NPC does in twelve varied states, before it serves.

The model is loaded in a process of its own: if llama.cpp ends that, or if it takes too long, the other findings stand.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np

from core.clock import now_ns
from core.errors import NpcdError
from core.script import Script
from core.words import NpcKey, Tier, TrunkKey
from core.work import Ended, Work
from daemon.model import lay_out
from daemon.process.answers import ACTIONS, EMOTIONS, PERSONA, STATES, WORLD, judged, not_asked
from daemon.process.diagnosis import Check
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from prompts.caps import Caps
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tiers.promises import Promises

PATIENCE_S = 60.0  # for loading and for all answers
KV = KvSettings(prefixes=2, lanes=2)
SEQUENCES, CONTEXT_LEN = 8, 1024
KEY = TrunkKey(NpcKey("", "doctor", "npc"), "")


def asked(settings: LlamaSettings, template: str, caps: Caps) -> Check:
    """The finding about a model's answers. Takes at most about PATIENCE_S."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_child, args=(theirs, settings, template, caps), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE_S):
            return not_asked(f"loading the model and twelve answers take more than {PATIENCE_S:.0f} s here")
        answers = ours.recv()
    except EOFError:
        child.join()
        return not_asked(f"the process that loaded the model ended with status {child.exitcode}")
    finally:
        child.kill()
        child.join()
        ours.close()
    return judged(answers) if isinstance(answers, list) else not_asked(answers)


def _child(answer: Connection, settings: LlamaSettings, template: str, caps: Caps) -> None:
    try:
        answer.send(ask(settings, template, caps))
    except NpcdError as error:
        answer.send(str(error))


def ask(settings: LlamaSettings, template: str, caps: Caps) -> list[str]:
    """The action in each of STATES, the most probable one. Raises NpcdError when the model cannot answer."""
    send_native_log_to(None)
    promises = Promises()
    engine = LlamaEngine(replace(settings, sequences=SEQUENCES, context_len=CONTEXT_LEN, weights="file"))
    try:
        scheduler = Scheduler(engine, promises, SchedulerSettings(kv=KV))
        layout, _ = lay_out(engine.vocab, template, caps)
        trunk, shared = layout.trunk(Script((*WORLD, PERSONA), len(WORLD)))
        graphs = layout.intents(ACTIONS, EMOTIONS)
        for n, state in enumerate(STATES):
            perception = layout.perceive(state)
            graph = graphs[len(perception.percepts)]
            tail, at_ns = np.asarray(layout.intent_tail(perception).tokens, np.int32), now_ns()
            work = Work(Tier.BRONZE, KEY, trunk, tail, graph.longest, shared, graph, due_ns=at_ns)
            work.deadline_ns = promises.deadline_ns(work.tier, at_ns)
            scheduler.submit(n, work, at_ns)
            _run(engine, scheduler)
        ends = {n: said for n, said in scheduler.take_deliveries() if isinstance(said, Ended)}
        return [ACTIONS[dict(ends[n].labels)["actions"]].word for n in range(len(STATES))]
    finally:
        engine.close()


def _run(engine: LlamaEngine, scheduler: Scheduler) -> None:
    """Steps until nothing is left to do."""
    while not scheduler.idle:
        began = now_ns()
        planned = scheduler.plan(began)
        if planned.step is None:
            time.sleep(0.001)  # a window is open
            continue
        result = engine.step(planned.step)
        scheduler.apply(planned, result, now_ns() - began, now_ns())
