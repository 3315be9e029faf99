"""Games that play against a daemon: the demo, and the loads that measure npcd's promises."""

import os

# gRPC prints "Got goaway" when a daemon leaves, before our own line. gRPC reads this variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
