"""docs/capacity.svg: a bar for each row of the table, on a background of its own, so that it is readable in light and
dark themes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from loadtests.capacity.outcome import Row

INK, FAINT, PAPER = "#1a202c", "#4a5568", "#fbfaf7"
FILL = {"": "#b7791f", "llama.cpp": "#718096", "paged attention": "#2b6cb0"}  # by engine
LEGEND = {"measured cost model": "", "llama.cpp's runs": "llama.cpp", "paged attention": "paged attention"}
WIDTH, LEFT, TOP = 900, 250, 100
BAR, BESIDE, BETWEEN = 17, 20, 13  # height of a bar, distance to the next one, and distance between groups
TITLE = "NPCs in view that hold every promise, by machine and model; every GPU is simulated"


def svg(rows: Sequence[Row]) -> str:
    """The chart, with text as text."""
    groups = [(name, list(group)) for name, group in groupby(rows, key=lambda row: row.name)]
    most = max([100, *(row.npcs for row in rows)])
    scale = (WIDTH - LEFT - 190) / most
    out: list[str] = []
    y = TOP
    for name, group in groups:
        out.append(_text(LEFT - 12, y + len(group) * BESIDE / 2 + 3, name, 'text-anchor="end"'))
        for row in group:
            width = max(1.0, row.npcs * scale)
            fill = FILL.get(row.engine, FAINT)
            out.append(f'  <rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{fill}"/>')
            out.append(_text(LEFT + width + 8, y + BAR - 4, _said(row), 'font-size="12"'))
            y += BESIDE
        y += BETWEEN
    bottom = y - BETWEEN + 2
    out.append(f'  <line x1="{LEFT}" y1="{TOP - 8}" x2="{LEFT}" y2="{bottom}" stroke="{FAINT}"/>')
    told = "in brackets: what breaks first in a larger town"
    out.append(_text(LEFT, bottom + 22, told, 'font-size="12"', FAINT))
    return "\n".join([*_head(bottom + 40), *out, "</svg>"]) + "\n"


def _head(height: int) -> list[str]:
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-labelledby="t">',
        f'  <title id="t">{TITLE}</title>',
        f'  <rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _text(20, 32, "NPCs in view at the promises", 'font-size="17" font-weight="600"'),
        _text(20, 52, "the real scheduler on stated cost models; no GPU was measured", "", FAINT),
    ]
    for i, (said, engine) in enumerate(LEGEND.items()):
        x = 20 + 170 * i
        out.append(f'  <rect x="{x}" y="66" width="12" height="12" fill="{FILL[engine]}"/>')
        out.append(_text(x + 18, 77, said, "", FAINT))
    return out


def _said(row: Row) -> str:
    if row.why_not:
        return f"does not fit: {row.why_not}"
    if not row.npcs:
        return f"0 (a pass takes {row.pass_ms:g} ms)"
    return f"{row.npcs:,}" + (f" ({row.breaks})" if row.breaks else "")


def _text(x: float, y: float, said: str, more: str = "", fill: str = INK) -> str:
    more = f" {more}" if more else ""
    return f'  <text x="{x:g}" y="{y:g}"{more} fill="{fill}">{escape(said)}</text>'
