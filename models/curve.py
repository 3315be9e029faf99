"""A training's losses as an SVG picture: held-out worlds are drawn bold, the training's own trees thin."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10

_WIDE, _HIGH, _LEFT, _LOW = 720, 360, 52, 34
_COLOURS = {"loss": "#222222", "choice": "#1f77b4", "reply": "#2ca02c", "found": "#d62728"}
_NAMES = {"loss": "weighted loss", "choice": "intents", "reply": "replies", "found": "found in the context"}
_TOP, _BOTTOM = 8.0, 0.01


def svg(points: Sequence[dict[str, float]]) -> str:
    """The picture; losses on a logarithmic scale."""
    last = max((p["step"] for p in points), default=1.0)

    def at(step: float, loss: float) -> str:
        share = (log10(_TOP) - log10(min(max(loss, _BOTTOM), _TOP))) / (log10(_TOP) - log10(_BOTTOM))
        x = _LEFT + (_WIDE - _LEFT - 10) * step / last
        return f"{x:.1f},{10 + (_HIGH - _LOW - 10) * share:.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDE}" height="{_HIGH}" fill="white"/>',
    ]
    for loss in (0.01, 0.03, 0.1, 0.3, 1, 3):
        y = at(0, loss).split(",")[1]
        lines.append(f'<path d="M{_LEFT},{y} H{_WIDE - 10}" stroke="#dddddd"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{loss}</text>')
    for i in range(6):
        step = last * i / 5
        x = at(step, 1).split(",")[0]
        lines.append(f'<text x="{x}" y="{_HIGH - 16}" text-anchor="middle">{step:,.0f}</text>')
    lines.append(f'<text x="{_WIDE / 2}" y="{_HIGH - 2}" text-anchor="middle">steps (bold: held-out worlds)</text>')
    for row, (name, colour) in enumerate(_COLOURS.items()):
        for key, width in ((name, 0.7), (f"held_{name}", 2.2)):
            path = " ".join(at(p["step"], p[key]) for p in points if key in p)
            if path:
                lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        lines.append(f'<text x="{_WIDE - 170}" y="{28 + 16 * row}" fill="{colour}">{_NAMES[name]}</text>')
    return "\n".join([*lines, "</svg>", ""])
