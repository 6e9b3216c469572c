"""Child processes: a supervisor, itself a process, that starts and owns every child of a worker; their streams, limits and ends.

In reading order:

    one process     `command` and `limits` say what it is; `client` has the worker's Child and its Supervisor, `streams` its pipes,
                    `inspection` measures its usage and its health
    its supervisor  `supervisor` is the loop of that process, with `launcher` (a child between fork and exec), `tree`
    (processes in
                    /proc), `cgroups` (control groups), and `lease` (finds the processes that a killed supervisor has
                    left); `sandbox/` confines a child
    one instance    `instance` is a program that may be restarted in another process, `phases` the table of its phases;
                    `document_names` has the states as the specifications 002, 003 and 004 name them (`docs/names.md`
                    compares these documents with Sabot)
    many            `pool` has the members of a fixed, a warm or an autoscaled pool; `health` watches them; `backends`
                    describes programs that agents are
    documents       what the specifications 002, 003 and 004 name beside these is in `specified/processes`

`import sabot` loads nothing of this package. The program of the supervisor imports the standard library and this folder alone.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
