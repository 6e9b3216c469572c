"""Jobs: durable runs of a function, over the journal of the effects that it has asked for.

Modules in reading order:

    core           decides, without I/O, what follows each event of an effect (`step`)
    tree           decides the same for jobs and their children
    url_ids        converts the ids of jobs to a form for URLs, and back
    history        the entries of one job, in the form that a replay needs
    run            a job in memory: its function, and its open effects
    loop           the event loop on which the function runs
    values         packs the arguments and results of effects
    owner          the contract between an agent and its jobs
    events         the events in the queue of a host
    host_state     the state that a host shares with its parts: the journal, the jobs in memory, the queue
    host           runs jobs over a journal: handles one event after the other; the next eight are its parts
    effects        appends the entries that the core returns, and runs its commands
    call_requests  handles the requests that calls make while they are under way
    runner         makes the calls of tools
    certainty      decides from the error of a tool whether its call was made
    parking        keeps the jobs that wait for something long
    timers         reports when something is due, and when letters have come
    letters        takes the letters of the inbox, and posts those of jobs
    log            appends entries, and publishes them to listeners when they are durable
    guard          the contract of guards, which decide on effects; masking hides texts in their arguments
    judges         asks the guard before calls of models that are not effects
    open_jobs      finds the jobs that have not ended, for a start of the app
    journal_calls  repeats calls of a journal whose server does not answer
    fork_history   copies the beginning of a job's history into another job

Words in capitals are entries of the journal: BEGIN (a job begins), INTENT (an effect is asked for), ATTEMPT (a further
attempt), RESULT, ANSWER, SIGNAL, CANCEL and END. A function is *quiet* when it has ended or every task of it waits. A
*turn* makes one delivery to the function, and runs the function until it is quiet.

The functions that run for a call and its result, in order:

- The function asks: JobRun.call; JobHost._take_up, Effects.submit, core.step (appends INTENT), EffectRunner.make.
- The call is made: EffectRunner._run, EffectRunner._tell.
- The result comes: JobHost._handle, Effects.call_ended, core.step (appends RESULT), JobHost.deliver, JobRun.deliver.
  The function goes on.

Those for a cancel while a call is under way:

- The cancel comes: JobTimers._look, JobLetters.take, JobTree.cancel, JobHost.deliver, JobRun.deliver. The function gets
  CancelledError.
- The call goes on: core.drop. JobHost.settle leaves the job open.
- The call ends: EffectRunner._tell, core.step (appends RESULT), JobHost.settle, JobHost._close_job.

Those for a restart of the app while such a call has no result:

- The job is found: JobHost.open, open_jobs.open_jobs, JobHost.resume, Parking.load.
- It runs over its history: JobHost._replay_job, JobRun.start.
- Its call is in doubt: Effects.submit, core.step, Effects._resolve_doubt, core.step. Another attempt follows, a
  question, or RESULT.
"""
