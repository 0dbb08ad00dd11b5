"""Pages that are made of the code: man pages (``make man``) and docs/metrics.md (``make docs``)."""
