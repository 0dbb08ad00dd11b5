"""A whole fabric on one machine, in network namespaces of its own.

``topology`` is the plan: pure names and addresses. ``netns``, ``underlay``,
``pods``, ``processes`` and ``agents`` make it real; ``fabric.Lab`` puts them
in order. ``matrix`` says what must hold, ``probe`` and ``search`` find out
what does, ``report`` prints it. Nothing here touches the network state of the
namespace it is called from.
"""
