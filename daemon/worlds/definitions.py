"""A world's definition becomes a world: counted, checked against its caps for every model, measured, and compiled.

Nothing here waits or knows which worlds there are. Long work is a generator of steps (core/slices.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from core.errors import CallerError
from core.script import Script, Section, SectionKind
from core.steps import Steps
from core.texts import check_name, check_prose
from daemon.words import check_id, policy_rows
from daemon.worlds.examples import examples_of
from daemon.worlds.language import check_language, name_of, texts_of, warnings_of
from daemon.worlds.limits import WorldLimits
from daemon.worlds.personas import Personas
from daemon.worlds.world import World
from engines.lora import Adapter, Adapters
from npcd.v1 import npcs_pb2
from prompts.choices import ActionWord, intents
from prompts.layout import Layout, world_sections
from prompts.placeholders import filled
from tiers.policy import PolicyRow
from tiers.policy_table import Sections, WorldWords, compiling_table, why_not

HASHED_BYTES = 64 << 10  # in one step


class Definitions:
    """Compiles them for the models that may read a world. `layouts`, `policy` and `adapters` do not change."""

    def __init__(
        self, layouts: Sequence[Layout], limits: WorldLimits, policy: Sections, adapters: Mapping[str, Adapters]
    ) -> None:
        self._layouts = layouts
        self._layout = layouts[0]
        self._limits = limits
        self._policy = policy
        self._adapters = adapters

    def needs_composing(self, request: npcs_pb2.DefineWorldRequest) -> bool:
        """True when compiling() would read and write files first: let compose() do it, on another thread."""
        names = [a.adapter for a in request.archetypes if a.adapter]
        return any(name not in of for name in names for of in self._adapters.values())

    def compose(self, request: npcs_pb2.DefineWorldRequest) -> None:
        """Makes the stacks of adapters that a definition names. Any thread may call. Raises CallerError."""
        for i, archetype in enumerate(request.archetypes):
            self._adapter(i, archetype)

    def compiling(
        self, tenant: str, request: npcs_pb2.DefineWorldRequest, content: bytes, content_hash: str
    ) -> Steps[World]:
        """The world of a definition, of version 1 and without NPCs, in steps. Raises CallerError naming the section and
        its limit.
        """
        limits, layout = self._limits, self._layout
        _count("archetypes", len(request.archetypes), 1, limits.archetypes_max)
        _count("actions", len(request.actions), 1, limits.actions_max)
        _count("emotions", len(request.emotions), 1, limits.emotions_max)
        _count("personas", len(request.personas), 0, limits.personas_max)
        _count("policy.rows", len(request.policy.rows), 0, limits.policy_rows_max)
        actions = [
            ActionWord(_word(f"actions[{i}].word", a.word), a.needs_target, a.speaks)
            for i, a in enumerate(request.actions)
        ]
        emotions = [_word(f"emotions[{i}]", e) for i, e in enumerate(request.emotions)]
        _unique("actions", [a.word for a in actions])
        _unique("emotions", emotions)
        _unique("archetypes", [a.archetype_id for a in request.archetypes])
        language = check_language("language", request.language)
        lore = filled("lore", check_prose("lore", request.lore))
        base: tuple[Section, ...] = world_sections(lore, actions, emotions)
        base_tokens = sum(self._measured(section) for section in base) - len(layout.ends.rules)
        sections = [("lore and words", base_tokens, layout.caps.lore + layout.caps.words)]
        if other := name_of(language):
            base = (*base, Section(SectionKind.LANGUAGE, other))
            self._measured(base[-1])
        policy = yield from self._table(request, actions, emotions)
        prefixes: dict[str, Script] = {}
        adapters = {a.archetype_id: self._adapter(i, a) for i, a in enumerate(request.archetypes)}
        for i, a in enumerate(request.archetypes):
            yield
            check_id(f"archetypes[{i}].archetype_id", a.archetype_id)
            field = f"archetypes[{i}].description"
            described = filled(field, check_prose(field, a.description))
            archetype = Section(SectionKind.ARCHETYPE, described, a.archetype_id)
            sections.append((f"archetype:{a.archetype_id}", self._measured(archetype), layout.caps.archetype))
            shared = (*base, archetype, *examples_of(policy, a.archetype_id, self._layouts))
            prefixes[a.archetype_id] = Script(shared, len(shared))
        personas: dict[str, Section] = {}
        told = Personas(self._layouts)
        for i, p in enumerate(request.personas):
            yield
            check_id(f"personas[{i}].persona_id", p.persona_id)
            if p.persona_id in personas:
                raise CallerError("personas", f"'{p.persona_id}' stands twice")
            check_name(f"personas[{i}].name", p.name)
            check_prose(f"personas[{i}].text", p.text)
            personas[p.persona_id] = told.section(p, f"personas[{i}].text")
            if not told.found:
                tokens = self._measured(personas[p.persona_id])
                sections.append((f"persona:{p.persona_id}", tokens, layout.caps.persona))
        told.check()
        yield
        choices = intents(actions, emotions, layout.caps.percepts)
        for reader in self._layouts:
            yield from reader.graphs_in_steps(choices)
        warnings = yield from self._warnings(request)
        return World(
            tenant=tenant,
            world_id=request.world_id,
            version=1,
            content_hash=content_hash,
            language=language,
            adapters=adapters,
            actions=actions,
            emotions=emotions,
            prefixes=prefixes,
            personas=personas,
            choices=choices,
            policy=policy,
            sections=sections,
            warnings=warnings,
            definition=content,
            archetypes=frozenset(a.archetype_id for a in request.archetypes),
        )

    def _warnings(self, request: npcs_pb2.DefineWorldRequest) -> Steps[list[str]]:
        if not self._layout.native:
            return []  # nobody knows what words another model was trained on
        texts = texts_of(request.lore, (a.description for a in request.archetypes), (p.text for p in request.personas))
        knows = self._layout.knows
        out = warnings_of(knows, [a.word for a in request.actions], request.emotions, {})
        for what, text in texts.items():
            yield
            out += warnings_of(knows, (), (), {what: text})
        return out

    def _adapter(self, i: int, archetype: npcs_pb2.Archetype) -> Mapping[str, Adapter]:
        """An archetype's adapter on each engine that has one of its name. One engine at least must have it."""
        name, where = archetype.adapter, f"archetypes[{i}].adapter"
        if not name:
            return {}
        found: dict[str, Adapter] = {}
        missing: list[CallerError] = []
        for engine, adapters in self._adapters.items():
            try:
                found[engine] = adapters.find(name, where)
            except CallerError as error:
                missing.append(error)
        if not found:
            raise missing[0] if missing else CallerError(where, f"there is no adapter '{name}'; there are none")
        return found

    def _table(
        self, request: npcs_pb2.DefineWorldRequest, actions: Sequence[ActionWord], emotions: Sequence[str]
    ) -> Steps[list[PolicyRow]]:
        words = WorldWords(
            archetypes=[a.archetype_id for a in request.archetypes],
            actions=[a.word for a in actions],
            targeted=[a.word for a in actions if a.needs_target],
            emotions=emotions,
        )
        own = yield from policy_rows(request.policy)
        for i, row in enumerate(own):
            yield
            field_name, reason = why_not(row, words)
            if reason:
                raise CallerError(f"policy.rows[{i}]" + (f".{field_name}" if field_name else ""), reason)
        return (yield from compiling_table(own, self._policy, words)).rows

    def _measured(self, section: Section) -> int:
        """Renders a section for every model; its tokens in the first one's. Raises TooLong."""
        for layout in self._layouts:
            layout.render(section)
        return len(self._layout.render(section).tokens)


def hashing(content: bytes) -> Steps[str]:
    """The hash of a definition, by which a repeated one is known."""
    sha = hashlib.sha256()
    for at in range(0, len(content), HASHED_BYTES):
        sha.update(content[at : at + HASHED_BYTES])
        yield
    return sha.hexdigest()


def _word(field: str, value: str) -> str:
    check_name(field, value)
    if value != " ".join(value.split()) or len(value.split()) > 3:
        raise CallerError(field, f"'{value}' must be one to three words with single spaces")
    return value


def _count(field: str, count: int, low: int, high: int) -> None:
    if not low <= count <= high:
        raise CallerError(field, f"{count} given, must be {low} to {high}")


def _unique(field: str, values: Sequence[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise CallerError(field, f"'{value}' stands twice")
        seen.add(value)
