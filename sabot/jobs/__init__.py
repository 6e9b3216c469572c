"""Jobs: durable runs of a function, over the journal of the effects that it has asked for.

Modules in reading order:

    core           decides, without I/O, what follows each event of an effect (`step`)
    tree           decides the same for jobs and their children
    history        the entries of one job, in the form that a replay needs
    run            a job in memory: its function, and its open effects
    loop           the event loop on which the function runs
    values         packs the arguments and results of effects
    owner          the contract between an agent and its jobs
    events         the events in the queue of a host
    host_state     the state that a host shares with its parts: the journal, the jobs in memory, the queue
    host           runs jobs over a journal: handles one event after the other; the next eight are its parts
    effects        appends the entries that the core returns, and runs its commands
    call_requests  handles requests of calls under way
    runner         makes the calls of tools
    certainty      decides from the error of a tool whether its call was made
    parking        jobs that wait for something long
    timers         reports when something is due, and when letters have come
    letters        takes the letters of the inbox, and posts those of jobs
    log            appends entries, and publishes them to listeners when they are durable
    guard          the contract of guards, which decide on effects; masking hides texts in their arguments
    judges         asks the guard before calls of models that are not effects
    open_jobs      finds the jobs that have not ended, for a start
    journal_calls  repeats calls of a journal whose server does not answer
    fork_history   makes the history of one job the beginning of another one

A call, and its result:

    JobRun.call; JobHost._take_up, Effects.submit, core.step (INTENT), EffectRunner.make; EffectRunner._run, EffectRunner._tell;
    JobHost._handle, Effects.call_ended, core.step (RESULT), JobHost.deliver, JobRun.deliver (the function goes on)

A cancel, with a call under way:

    JobTimers._look, JobLetters.take, JobTree.cancel, JobHost.deliver, JobRun.deliver (the function gets CancelledError), core.drop (the
    call goes on), JobHost.settle (the job stays open); EffectRunner._tell, core.step (RESULT), JobHost.settle, JobHost._close_job

A restart, with such a call:

    JobHost.open, open_jobs.open_jobs, JobHost.resume, Parking.load, JobHost._replay_job, JobRun.start (over the history), Effects.submit,
    core.step (it is in doubt), Effects._resolve_doubt, core.step: another attempt, a question, or RESULT
"""
