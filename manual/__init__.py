"""Pages that are made of the code: docs/metrics.md (``make docs``)."""
