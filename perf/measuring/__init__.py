"""From a running deployment to records of `perf.results`: loads, bounds, memory, bytes, stages, and what could be at most."""
