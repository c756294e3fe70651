"""A trace: `records.py` has its records, in types and as lines of a file; `trace.py` gathers a run's."""
