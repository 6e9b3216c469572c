"""The sandbox of a child: its `levels` of trust, what it can `reach` by which `paths`, how it is confined (`confine`), and its filter of
calls (`seccomp`).
"""
