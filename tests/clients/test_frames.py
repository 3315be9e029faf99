"""FrameClient serves a game that has a frame loop and no event loop. The daemon runs in another process."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from npcd_client import (
    ActionWord,
    Archetype,
    CallerError,
    FrameClient,
    Intent,
    NpcdError,
    NpcSpec,
    Observation,
    Percept,
    TalkEvent,
    TalkEventKind,
    Unavailable,
    World,
)
from tests.patience import PATIENCE_S

WORLD = World("hollow", "A valley.", (Archetype("vampire", "Thirsts."),), (ActionWord("wander"),), ("calm",))


@pytest.fixture
def npcd(daemon_target: str) -> Iterator[FrameClient]:
    with FrameClient.start(daemon_target) as client:
        client.wait(client.npcd.wait_ready(PATIENCE_S))
        client.wait(client.npcd.define_world(WORLD))
        client.wait(client.npcd.register([NpcSpec("a", "vampire", "p")]))
        yield client


def test_a_frame_loop_observes_reads_and_talks(npcd: FrameClient) -> None:
    heard: queue.Queue[Intent] = queue.Queue()
    npcd.open_live(on_intent=heard.put)
    npcd.tell_time(1000)
    npcd.observe(Observation("a", 1, percepts=(Percept("p1", "player"),)))
    intent = heard.get(timeout=PATIENCE_S)
    assert npcd.latest("a") is intent and intent.target_entity_id == "p1" and intent.game_time_ms >= 1000
    assert 0 <= intent.age_ms < 5000 and not intent.expired

    events: queue.Queue[TalkEvent] = queue.Queue()
    turn = npcd.talk_soon("a", "p1", "Hello.", events.put)
    said = ""
    while (event := events.get(timeout=PATIENCE_S)).kind is not TalkEventKind.END:
        said += event.text
    assert said == "Well met, stranger." and event.turn_id == turn.turn_id


def test_errors_of_a_turn_come_to_their_own_listener(npcd: FrameClient) -> None:
    failures: queue.Queue[NpcdError] = queue.Queue()
    npcd.talk_soon("nobody", "p1", "Hello.", lambda event: None, failures.put)
    assert isinstance(failures.get(timeout=PATIENCE_S), CallerError)


def test_a_turn_can_be_stopped_from_the_frame_loop(npcd: FrameClient) -> None:
    events: queue.Queue[TalkEvent] = queue.Queue()
    turn = npcd.talk_soon("a", "p1", "hold", events.put)
    while events.get(timeout=PATIENCE_S).kind is not TalkEventKind.TEXT:
        pass
    turn.cancel()
    assert turn.done


def test_close_ends_the_thread_and_later_calls_say_so(npcd: FrameClient) -> None:
    npcd.open_live()
    npcd.close()
    npcd.close()
    npcd.observe(Observation("a", 2))  # a frame that is still running may observe without harm
    with pytest.raises(Unavailable, match="closed"):
        npcd.wait(npcd.npcd.status())


def test_without_a_stream_the_frame_loop_is_told_what_to_call(npcd: FrameClient) -> None:
    with pytest.raises(Unavailable, match="open_live"):
        npcd.latest("a")
