"""The way in, for `npcd` and `python -m npcd`: finds our folders and hands over to daemon.main."""

import os
import signal
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
    # While libraries are imported Ctrl-C ends the command without a traceback; the demo and serve then listen for it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and argv is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # gRPC prints "Got goaway" where a daemon goes away, before our own line; read by gRPC when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    first = str(house())
    # First on the path, so that nobody else's `core` or `memory` comes before ours.
    sys.path[:] = [first, *(entry for entry in sys.path if entry != first)]
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["demo"]:
        # The demo is a client: it shares this command's name and nothing of the daemon.
        try:
            import npcd_client  # noqa: F401
        except ModuleNotFoundError:
            print("npcd: the demo needs its client; in the checkout: pip install ./clients/python", file=sys.stderr)
            return 2
        from loadtests.demo import main as demo

        return demo(arguments[1:])
    from daemon.main import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
