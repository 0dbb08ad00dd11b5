"""Faults, planted one by one in a lab that carries traffic, and what becomes of them.

``fault`` says what a fault is; ``stage`` is the lab that they are planted in
and ``cast`` its nodes; ``picture`` and ``peers`` say what is right, ``stream``
counts lost packets. ``drift``, ``agent``, ``store``, ``connection`` and ``lease``
hold the faults; ``runner`` plants them and ``table`` shows the outcome.
"""
