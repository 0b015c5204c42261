"""From a name to a graph an engine can run: find, check, convert, quantise, measure, keep."""
