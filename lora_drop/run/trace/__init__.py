"""A trace: `records.py` has the types of its records, `lines.py` writes and reads them, `trace.py` gathers a run's."""
