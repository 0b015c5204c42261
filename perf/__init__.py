"""Measuring: deployments beside each other, workloads, load, the bare loop, peers, queues, overload, and long runs."""

import os

# Processes are started while gRPC is in use, and would each have it complain that it cannot follow them into the fork. It is asked
# when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
