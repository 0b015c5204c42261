"""Measuring: workloads, load, the bare loop, peers, queues, overload, and long runs."""
