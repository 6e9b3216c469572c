"""The names of the specifications: classes that documents have named before Sabot had its own, over the core that does the work.

Each is imported from the face that its document names (`from sabot.process import ProcessRuntime`), and no other module of
Sabot imports this wing. Programs that do not need these names are shorter without them. By document:

    001    `flows`: chains, graphs and workflows of agents; `plugins`; `cedar` for policies; `brokers` for events
    002    `processes`: lifecycle, quotas, resources, scaling, recommending, warm; `mcp`
    003    `processes`: runner
    004    `processes`: runtime, executor, task_lines, lead

`docs/names.md` says for each name what does the work.
"""
