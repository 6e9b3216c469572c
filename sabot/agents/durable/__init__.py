"""Durable agents on the engine: the kind of agents whose jobs a journal keeps.

`kind` is what the engine sees of it (`runtime.agent_kind`), `run` the jobs of one run. `operator` and `batch_operator`
run an agent inside the agent task: `key_order` puts its rows in the order of their keys, those that wait long are in a
`mailbox`. `context` is what the user's function gets, `models` the models that it asks. `job_rows` and `job_batches`
are the input of jobs as the journal has it; `job_function` calls the user's function.
"""
