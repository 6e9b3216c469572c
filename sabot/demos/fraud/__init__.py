"""Card fraud on a stream: a generator with a seed, rolling features in keyed state, and a score with a reason.

Modules in the order in which a record passes: `generator` (the source), `features` (keyed state), `scoring`, `app`
(the agents), `demo` (the command `sabot demo fraud`).
"""
