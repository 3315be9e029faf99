"""Plain values to protobuf messages and back. The only place that knows both."""

from __future__ import annotations

import operator
from dataclasses import fields, replace

from npcd_client import perception, talking, world
from npcd_client.errors import CallerError
from npcd_client.v1 import dialogue_pb2, intents_pb2, npcs_pb2, words_pb2


def whole(field: str, value: int, bits: int) -> int:
    """The value, if the contract can carry it in so many bits. Raises CallerError."""
    if not 0 <= value < 2**bits:
        raise CallerError(f"{field}: is {value}, must be 0 to {2**bits - 1}", "INVALID_ARGUMENT")
    return value


def define_world(given: world.World, expected_version: int) -> npcs_pb2.DefineWorldRequest:
    """A world as DefineWorld takes it."""
    return npcs_pb2.DefineWorldRequest(
        world_id=given.world_id,
        language=given.language,
        lore=given.lore,
        archetypes=[
            npcs_pb2.Archetype(archetype_id=a.archetype_id, description=a.description, adapter=a.adapter)
            for a in given.archetypes
        ],
        actions=[npcs_pb2.ActionWord(word=a.word, needs_target=a.needs_target, speaks=a.speaks) for a in given.actions],
        emotions=given.emotions,
        personas=[persona(p) for p in given.personas],
        policy=npcs_pb2.Policy(rows=[policy_row(row) for row in given.policy.rows]),
        expected_version=whole("expected_version", expected_version, 64),
    )


def persona(given: world.Persona) -> npcs_pb2.Persona:
    """A persona."""
    return npcs_pb2.Persona(persona_id=given.persona_id, name=given.name, text=given.text)


def npc_spec(given: world.NpcSpec) -> npcs_pb2.NpcSpec:
    """One NPC to register; without a persona of its own the field stays unset."""
    return npcs_pb2.NpcSpec(
        npc_id=given.npc_id,
        archetype_id=given.archetype_id,
        persona_id=given.persona_id,
        persona=persona(given.persona) if given.persona else None,
    )


def policy_row(row: world.PolicyRow) -> npcs_pb2.PolicyRow:
    """One rule, to the wire."""
    return npcs_pb2.PolicyRow(
        archetype_id=row.archetype_id,
        percept_kind=row.percept_kind,
        percept_stance=row.percept_stance,
        distance_max_m=row.distance_max_m,
        event=row.event,
        health_max=row.health_max,
        time_of_day=row.time_of_day,
        action=row.action,
        emotion=row.emotion,
        bark=row.bark,
    )


def policy(message: npcs_pb2.Policy) -> world.Policy:
    """The compiled policy that Register answers."""
    return world.Policy(
        tuple(
            world.PolicyRow(
                archetype_id=row.archetype_id,
                percept_kind=row.percept_kind,
                percept_stance=row.percept_stance,
                distance_max_m=row.distance_max_m,
                event=row.event,
                health_max=row.health_max,
                time_of_day=row.time_of_day,
                action=row.action,
                emotion=row.emotion,
                bark=row.bark,
            )
            for row in message.rows
        )
    )


def observation(given: perception.Observation, lease_epoch: int) -> intents_pb2.Observation:
    """An observation under its lease. A value of another type raises any Python error; fault() names its field."""
    if isinstance(given.events, str):
        raise TypeError("is one text, must be a tuple of texts")  # otherwise each of its letters would be an event
    x_m, y_m, z_m = given.position_m
    vx_mps, vy_mps, vz_mps = given.velocity_mps
    return intents_pb2.Observation(
        npc_id=given.npc_id,
        lease_epoch=lease_epoch,
        tick=operator.index(given.tick),
        x_m=x_m,
        y_m=y_m,
        z_m=z_m,
        vx_mps=vx_mps,
        vy_mps=vy_mps,
        vz_mps=vz_mps,
        health=0.0 if given.health is None else given.health,
        has_health=given.health is not None,
        time_of_day=given.time_of_day,
        place=given.place,
        percepts=[
            intents_pb2.Percept(
                entity_id=p.entity_id, kind=p.kind, stance=p.stance, distance_m=p.distance_m, in_sight=p.in_sight
            )
            for p in given.percepts
        ],
        events=given.events,
        has_activation=given.activation is not None,
        activation=activation(perception.Activation.UNSPECIFIED if given.activation is None else given.activation),
    )


def fault(given: perception.Observation) -> tuple[str, str]:
    """The first field of an observation that observation() cannot take, and why; empty texts when it takes them all."""
    blank = perception.Observation("", 0)
    for field in fields(perception.Observation):
        try:
            observation(replace(blank, **{field.name: getattr(given, field.name)}), 0)
        except Exception as error:
            return field.name, reason(error)
    return "", ""


def reason(error: Exception) -> str:
    """The text of a Python error, or its type when it has no text."""
    return str(error) or type(error).__name__


def activation(given: perception.Activation) -> words_pb2.Activation.ValueType:
    """An activation, or its plain number, to the wire. Raises ValueError for one that is not in the contract."""
    return words_pb2.Activation.ValueType(perception.Activation(given).value)


def activation_of(number: int) -> perception.Activation:
    """An activation, from the wire; one of a newer contract reads as UNSPECIFIED."""
    return _ACTIVATIONS.get(number, perception.Activation.UNSPECIFIED)


def intent(
    message: intents_pb2.Intent, daemon_epoch: int, agreed_ns: int, clock: perception.GameClock
) -> perception.Intent:
    """An intent of one daemon, with the client's own time of the observation it agrees with."""
    return perception.Intent(
        npc_id=message.npc_id,
        daemon_epoch=daemon_epoch,
        version=message.version,
        action=message.action,
        target_entity_id=message.target_entity_id,
        emotion=message.emotion,
        bark=message.bark,
        source=_source(message.source),
        observed_tick=message.observed_tick,
        game_time_ms=message.game_time_ms,
        ttl_ms=message.ttl_ms,
        previous_action=message.previous_action,
        blend_ms=message.blend_ms,
        latency_ms=message.latency_ms,
        confidence=message.confidence,
        agreed_ns=agreed_ns,
        clock=clock,
        activation=activation_of(message.activation),
        lease_epoch=message.lease_epoch,
    )


def talk(
    first: dialogue_pb2.TalkRequest,
    text: str,
    turn_id: str,
    max_tokens: int,
    seed: int | None,
    temperature: float | None,
) -> dialogue_pb2.TalkRequest:
    """One line, of and to those that `first` names. Raises CallerError for numbers that the contract cannot carry."""
    request = dialogue_pb2.TalkRequest(
        turn_id=turn_id,
        text=text,
        max_tokens=whole("max_tokens", max_tokens, 32),
        seed=0 if seed is None else whole("seed", seed, 64),
        has_seed=seed is not None,
        temperature=temperature or 0.0,
        has_temperature=temperature is not None,
    )
    request.MergeFrom(first)
    return request


def talk_event(message: dialogue_pb2.TalkEvent) -> talking.TalkEvent:
    """One event of a turn; a kind or finish of a newer contract reads as UNSPECIFIED."""
    end = message.kind == dialogue_pb2.TALK_EVENT_KIND_END
    return talking.TalkEvent(
        kind=_KINDS.get(message.kind, talking.TalkEventKind.UNSPECIFIED),
        turn_id=message.turn_id,
        session_id=message.session_id,
        text=message.text,
        index=message.index,
        flags=tuple(message.flags),
        finish=_FINISHES.get(message.finish, talking.TalkFinish.UNSPECIFIED),
        timings=timings(message.timings) if end else None,
        accepted=message.accepted if end and message.accepted_known else None,
        sentence_end=message.sentence_end,
        emotion=message.emotion,
    )


def timings(message: words_pb2.Timings) -> talking.Timings:
    """Timings of one work."""
    return talking.Timings(
        queue_us=message.queue_us,
        window_us=message.window_us,
        recall_us=message.recall_us,
        prefill_us=message.prefill_us,
        decode_us=message.decode_us,
        cached_tokens=message.cached_tokens,
        prefilled_tokens=message.prefilled_tokens,
        output_tokens=message.output_tokens,
        stores=tuple(message.stores),
        recall_late=message.recall_late,
        cut_tokens=message.cut_tokens,
        loaded_tokens=message.loaded_tokens,
        copied_tokens=message.copied_tokens,
        recomputed_tokens=message.recomputed_tokens,
        rebuild_tokens=message.rebuild_tokens,
        guard_tokens=message.guard_tokens,
    )


_KINDS = {int(kind): kind for kind in talking.TalkEventKind}
_FINISHES = {int(finish): finish for finish in talking.TalkFinish}
_ACTIVATIONS = {int(activation): activation for activation in perception.Activation}
_SOURCES = {int(source): source for source in perception.IntentSource}


def _source(number: int) -> perception.IntentSource:
    return _SOURCES.get(number, perception.IntentSource.UNSPECIFIED)
