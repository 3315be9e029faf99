"""Numbers of a command line with their bounds. A text that is no finite number within them is reported in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

SECONDS_MAX = 86_400.0


def whole(least: int, most: int) -> Callable[[str], int]:
    """A type for argparse: a whole number within bounds."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not '{text[:40]}'")
        return number

    return read


def amount(least: float, most: float) -> Callable[[str], float]:
    """A type for argparse: a number within bounds; "nan" and "inf" are refused."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {least:g} to {most:g}, not '{text[:40]}'")
        return number

    return read
