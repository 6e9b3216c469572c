"""Durable agents on the engine: the kind of agents whose jobs a journal keeps.

`kind` is the interface to the engine (`runtime.agent_kind`), and `run` has the jobs of one run of an app. `operator`
and `batch_operator` run an agent inside the agent task. `key_order` decides when the next row of a key has its turn,
and `mailbox` stores rows that wait for long. `job_function` calls the user's function. `context` is the argument of
that function, and `models` has the models that the function asks. `job_rows` and `job_batches` encode the input of jobs
for the journal.
"""
