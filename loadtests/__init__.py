"""Worlds that play against a daemon: the demo, and the loads that promises are measured with."""

import os

# gRPC prints "Got goaway" where a daemon goes away, before our own line; read by gRPC when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
