"""Measuring: load, workloads, the bare loop. Later: topologies and peers."""
