"""Measuring: deployments beside each other, workloads, load, the bare loop, peers, queues, overload, and long runs."""

import os

# Processes are started while gRPC is in use, and of each it would complain that it cannot follow it into the fork. The setting is
# read when gRPC is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
