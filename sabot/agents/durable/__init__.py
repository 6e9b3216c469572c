"""Durable agents on the engine: agents whose jobs are kept in a journal.

agent_functions  the function of an agent that asks a model for each record
kind             the interface to the engine (`runtime.agents.kind`)
run              the jobs of one run of an app
operator         runs an agent inside the agent task
batch_operator   the same for an agent whose jobs have batches
key_order        decides when the next row of a key may begin its job
waiting_rows     stores rows whose key has a job that takes long
job_function     calls the user's function for a job
context          the argument `ctx` of that function
models           the models that the function asks
job_rows         the input of a job in the journal: a record
job_batches      the input of a job in the journal: a batch
"""
