"""``overlayctl doctor``: what in this host, or around it, would break the fabric.

``facts`` are what was read, each once and only when a check asks; ``checks``
judge them, a small module each; ``catalog`` lists them in the order of the
report; ``runner`` runs them, those that ask others side by side; ``report``
prints. Nothing here changes anything.
"""
