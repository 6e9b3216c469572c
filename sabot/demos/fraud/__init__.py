"""Card fraud on a stream: a seeded generator, rolling features in keyed state, a score that explains itself.

Read in the order of the record's walk: `generator` (the source), `features` (keyed state), `scoring`, `app` (the agents),
`demo` (what `sabot demo fraud` does).
"""
