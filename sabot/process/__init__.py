"""Child processes: a supervisor, itself a process, that starts and owns every child of a worker; their streams, limits and ends.

In reading order:

    one process     `command` and `limits` say what it is; `client` has the worker's Child and its Supervisor, `streams` its pipes,
                    `inspection` the looks at its usage and health
    its supervisor  `supervisor` is the loop of that process, with `launcher` (fork to exec), `tree`, `cgroups`, and `lease` for what a
                    killed supervisor leaves; `sandbox/` confines
    one instance    `instance` is a program over all its processes, `phases` the table of its changes; `document_names` has the states
                    as the specifications 002, 003 and 004 name them (the documents that `docs/names.md` compares with Sabot)
    many            `pool` has the members of a fixed, a warm (`fleet/warm`) or an autoscaled pool (`fleet/scaling`)
    document 002    `fleet/`: lifecycle, quotas, health
    document 003    `runner` runs programs once, which `backends` describes
    document 004    `runtime` keeps instances, `executor` gives them tasks over `task_lines`; `lead` plans

`import sabot` loads nothing of this package. The program of the supervisor imports the standard library and this folder alone.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
