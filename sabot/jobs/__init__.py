"""Jobs: durable runs of a function, over the journal of what it has asked for.

Modules in reading order:

    core           decides, without I/O, what follows each event of an effect
    tree           the same for jobs and their children
    history        the entries of one job, as a run over them needs them
    run            a job in memory: its function, and the effects that are open
    loop           the event loop that the function runs on
    values         packs what goes in and out of effects
    owner          what an agent is to its jobs
    events         what happens in a host, as its queue holds it
    host_state     what a host and its parts share: the journal, the jobs in memory, the queue
    host           runs jobs over a journal: handles one event after the other; the next eight are its parts
    effects        writes the entries of effects, and runs the commands of the core
    call_requests  what calls under way ask for
    runner         makes the calls of tools
    certainty      what the error of a tool says of its call
    parking        jobs that wait for something long
    timers         says when something is due, and when letters have come
    letters        takes the letters of the inbox, and posts those of jobs
    log            appends entries, and tells listeners when they are durable
    guard          the contract of what decides on effects; masking hides texts in their arguments
    judges         the guard before calls of models that are no effects
    open_jobs      finds the jobs that have not ended, for a start
    journal_calls  repeats calls of a journal whose home is away
    fork_history   makes the history of one job the beginning of another one

A cancel, with a call under way:

    JobTimers._look, JobLetters.take, JobTree.cancel, JobHost.deliver, JobRun.deliver (the function gets CancelledError), core.drop (the
    call goes on), JobHost.settle (the job stays open); EffectRunner._tell, core.attempt_ended, JobHost.settle, JobHost._close_job

A restart, with such a call:

    JobHost.open, open_jobs.open_jobs, JobHost.resume, Parking.load, JobHost._replay_job, JobRun.start (over the history), Effects.submit,
    core.intended, Effects.resolve_doubt, core.continue_with_question, core.doubted, then another attempt, a question, or RESULT
"""
