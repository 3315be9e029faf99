"""The way in, for `npcd` and `python -m npcd`: finds our folders and hands over to daemon.main."""

import sys
from collections.abc import Sequence
from pathlib import Path


def house() -> Path:
    """Where core/, daemon/ and the others are: npcd/_app in an installed wheel, else the checkout."""
    here = Path(__file__).resolve().parent
    carried = here / "_app"
    return carried if carried.is_dir() else here.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one npcd command and gives its exit status. `argv` None means the command line."""
    first = str(house())
    # First on the path, so that nobody else's `core` or `memory` comes before ours.
    sys.path[:] = [first, *(entry for entry in sys.path if entry != first)]
    from daemon.main import main as run

    return run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
