"""Texts that earlier versions of npcd took and this one refuses are cleaned, so that worlds and NPCs are not lost."""

from __future__ import annotations

from core.steps import Steps
from core.texts import cleaned, cleaned_line, cleaned_name, line_fault, name_fault
from daemon.worlds.language import well_formed
from npcd.v1 import npcs_pb2
from prompts.placeholders import opened


def cleaning(request: npcs_pb2.DefineWorldRequest) -> Steps[None]:
    """Takes out what only earlier versions took: a language of any text, characters that no text may have now, and
    placeholders that nothing fills in.
    """
    if not well_formed(request.language):
        request.language = ""
    request.lore = opened(cleaned(request.lore))
    for archetype in request.archetypes:
        archetype.description = opened(cleaned(archetype.description))
    for persona in request.personas:
        yield
        clean_persona(persona)
    for row in request.policy.rows:
        for name in ("percept_kind", "percept_stance", "event", "time_of_day", "bark"):
            if line_fault(getattr(row, name)):
                setattr(row, name, cleaned_line(getattr(row, name)))


def clean_persona(persona: npcs_pb2.Persona) -> None:
    """The same for one persona."""
    if name_fault(persona.name):
        persona.name = cleaned_name(persona.name)
    persona.text = opened(cleaned(persona.text), persona.name)
