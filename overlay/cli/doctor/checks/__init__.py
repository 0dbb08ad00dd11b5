"""The checks of ``overlayctl doctor``: a module each, or a few that look at one thing."""
