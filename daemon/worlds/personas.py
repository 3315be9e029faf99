"""Personas become sections, and those that are too long for a model are collected for one message."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import CallerError
from core.script import Section, SectionKind
from npcd.v1 import npcs_pb2
from prompts.caps import TooLong
from prompts.layout import Layout
from prompts.placeholders import filled

PERSONAS_TOLD_LEN = 200  # characters: a status is cut at 300


class Personas:
    """The personas of one request. All of them that are too long for a model are told, not one at each try."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = layouts
        self.found: list[tuple[str, TooLong]] = []

    def section(self, said: npcs_pb2.Persona, field: str) -> Section:
        """Its section; it is noted when it is too long. Raises CallerError naming the field of a placeholder."""
        section = Section(SectionKind.PERSONA, filled(field, said.text, said.name), said.name)
        try:
            for layout in self._layouts:
                layout.render(section)
        except TooLong as error:
            self.found.append((said.name, error))
        return section

    def check(self) -> None:
        """Raises CallerError when there is one."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise self.found[0][1]
        named, room = [], PERSONAS_TOLD_LEN
        for name, error in self.found:
            named.append(f"{name} ({error.size})")
            room -= len(named[-1]) + 2
            if room < 0:
                named.pop()
                break
        more = f" and {len(self.found) - len(named)} more" if len(named) < len(self.found) else ""
        most = min(layout.caps.persona for layout in self._layouts)
        raise CallerError("personas", f"the limit is {most} tokens (caps.persona); shorten {', '.join(named)}{more}")
