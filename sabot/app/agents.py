"""How an app is given its agents: a function for each record or batch (`agent`), or a model with tools (`llm_agent`)."""

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from sabot.api.agent import AgentOptions, AgentSpec, BatchAgentOptions, RecordAgentOptions, Topics
from sabot.api.lifespan import Lifespan
from sabot.api.settings import Settings
from sabot.base.config import Duration, checked_name, checked_topic
from sabot.base.options import no_option, options_of, spells_out
from sabot.connectors.checks import check_start
from sabot.engine.calls.judging import repeated_around
from sabot.engine.calls.options import LoopOptions
from sabot.engine.runtime.agents.runtime import AgentRuntime
from sabot.engine.runtime.app_spec import AppSpec
from sabot.errors import UserError, short_repr

if TYPE_CHECKING:
    from sabot.agents.accounts.budgets import Budget
    from sabot.agents.accounts.ledger import Ledger
    from sabot.agents.actions import ActionManager
    from sabot.agents.app_jobs import AppJobs, AppJobStore
    from sabot.agents.events.bus import EventBus
    from sabot.agents.policy.engine import PolicyEngine
    from sabot.agents.programs.command import LineFormat
    from sabot.agents.programs.pool import PoolProtocol
    from sabot.api.stream import Stream
    from sabot.engine.calls.effects import EffectClass, EffectName
    from sabot.engine.calls.tool_context import ToolContext
    from sabot.engine.calls.tools import InDoubt
    from sabot.jobs.guard import EffectGuard
    from sabot.jobs.judges import GuardJudge
    from sabot.jobs.log import Listener
    from sabot.llm.agent import Agent, AgentResult
    from sabot.llm.engine import ExecutionEngine
    from sabot.process.health import HealthMonitor
    from sabot.process.limits import ResourceLimits
    from sabot.process.sandbox.levels import Sandbox, TrustLevel

F = TypeVar("F", bound=Callable[..., Any])


class LlmAgentOptions(RecordAgentOptions, LoopOptions, total=False):
    """The options of `App.llm_agent`: those of `App.agent`, and those of `sabot.llm.Agent` except its name."""

    instructions: "str | Callable[[ToolContext[Any]], str | Awaitable[str]]"
    deps: Any
    output: Any


class AgentDeclarations:
    """The part of an App that agents are declared with."""

    id: str
    settings: Settings
    spec: AppSpec
    lifespan: Lifespan
    agent_runtime: AgentRuntime
    send: Callable[..., Awaitable[int]]
    policy: "PolicyEngine | None"
    _budgets: "Sequence[Budget] | Ledger | None"
    _ledger: "Ledger | None"
    _judge: "GuardJudge | None"

    @cached_property
    def jobs(self) -> "AppJobs":
        """The jobs of durable agents, whoever runs the app."""
        from sabot.agents.app_jobs import AppJobs

        return AppJobs(self._outside)

    @cached_property
    def actions(self) -> "ActionManager":
        """The questions of jobs to people, and the answers."""
        from sabot.agents.actions import ActionManager

        return ActionManager(self._outside)

    @cached_property
    def _outside(self) -> "AppJobStore":
        """Where both are read, and told."""
        from sabot.agents.app_jobs import AppJobStore, place_of_app

        return AppJobStore(partial(place_of_app, self.spec), self.spec.clock, lambda: self.agent_runtime.runner.journal)

    def surround_jobs(
        self,
        events: "EventBus | None",
        policy: "PolicyEngine | None",
        budgets: "Sequence[Budget] | Ledger | None",
    ) -> "Listener | None":
        """Sets the guards of the effects of jobs, and returns the listener to jobs. Only the modules of given arguments are loaded."""
        self.policy, self._budgets, self._ledger, self._judge = policy, budgets, None, None
        self._around: Any = None  # the judge of the code that has started the app, if this code may be repeated
        if policy is not None:
            from sabot.jobs.guard import checked_guard

            checked_guard(policy)
        if budgets is not None:
            from sabot.agents.accounts.guard import checked_budgets

            checked_budgets(budgets)
        if events is None:
            return None
        from sabot.agents.events.job_events import JobEvents

        if not (hasattr(events, "publish") and hasattr(events, "wants")):
            raise UserError(f"events={short_repr(events)}", hint="an EventBus: InMemoryEventBus()")
        return JobEvents(events.publish, events.wants)

    @property
    def accounts(self) -> "Ledger | None":
        """The ledger with the usage of all scopes, in the state directory if there is one. It is None for an app without `budgets=`."""
        if self._ledger is None and self._budgets is not None:
            from sabot.agents.accounts.guard import ledger_of

            self._ledger = ledger_of(self._budgets, self.settings.state_dir, self.spec.clock)
        return self._ledger

    def ledger(self, *, lateness: Duration = 0, idle: Duration = "30s") -> "Stream":
        """Returns the usage of the jobs of this app as a stream of rows (`accounts.stream.LEDGER_SCHEMA`), for windows, joins and
        alerts. Its event time is the time of the usage.

        `lateness`, `idle`: the same as in `stream`. Raises UserError for an app without `budgets=`.
        """
        if self._budgets is None:
            raise UserError(f"app {self.id} records nothing that is used", hint="App(…, budgets=[]) only records")
        from sabot.agents.accounts.stream import LEDGER_SCHEMA, ledger_source

        source = ledger_source(self.id, self.jobs.store.reader)
        options: Any = {"lateness": lateness, "idle": idle, "dead_letter": f"{self.id}.ledger.dlq"}
        app: Any = self  # this class is a part of it
        stream: Stream = app.stream(source, schema=LEDGER_SCHEMA, time="at", **options)
        return stream

    @property
    def guards(self) -> "Sequence[EffectGuard]":
        """The policy, the limits of code that may be repeated, then the ledger. The first one decides first."""
        guards: list[EffectGuard] = [] if self.policy is None else [self.policy]
        if self._around is not None:
            from sabot.agents.accounts.job_limits import JobLimits

            guards.append(JobLimits({"": self._around}))
        ledger = self.accounts
        if ledger is not None:
            from sabot.agents.accounts.guard import LedgerGuard

            guards.append(LedgerGuard(ledger, closes=ledger is not self._budgets))
        return guards

    @property
    def declared(self) -> list[str]:
        """The options "policy" and "budgets", as far as the app has them."""
        return [name for name, given in (("policy", self.policy), ("budgets", self._budgets)) if given is not None]

    def note_start(self) -> None:
        """Notes the code that starts the app, if it may be repeated: the app may not call there what must not be."""
        self._around, self._judge = repeated_around(), None

    def judge(self) -> "GuardJudge | None":
        """Returns the judge of calls on this event loop that no job makes, or None if there is no policy and no budget."""
        if self.policy is None and self._budgets is None and self._around is None:
            return None
        if self._judge is None or self._judge.loop is not asyncio.get_running_loop():
            from sabot.jobs.judges import judge_of

            self._judge = judge_of(self.id, self.guards, self.spec.clock)
        return self._judge

    def observe_metrics(self, meter_provider: Any = None) -> None:
        """Gives a meter provider of OpenTelemetry the figures of /metrics, under the same names. Call it once, in the program.

        `meter_provider`: by default the one of the process, as `opentelemetry-instrument` sets it up. Raises MissingExtra (`sabot[otel]`).
        """
        self.agent_runtime.runner.watch.metrics.observe(meter_provider)

    @overload
    def agent(
        self,
        topic: Topics = None,
        *,
        name: str | None = None,
        batch: Literal[True],
        **options: Unpack[BatchAgentOptions],
    ) -> Callable[[F], F]: ...

    @overload
    def agent(
        self,
        topic: Topics = None,
        *,
        name: str | None = None,
        batch: Literal[False] = False,
        **options: Unpack[RecordAgentOptions],
    ) -> Callable[[F], F]: ...

    @spells_out(AgentOptions)
    def agent(self, topic: Any = None, *, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Makes a function an agent of this app, which is called for each record of a topic, and returns the function itself.

        ```python
        from sabot import App, console

        app = App("orders")


        @app.agent("orders", sink=console(), until="now")
        async def large(ctx):
            return ctx.message if ctx.message["amount"] > 100 else None


        await app.send("orders", {"id": 1, "amount": 5})
        await app.send("orders", {"id": 2, "amount": 500})
        await app.run()
        ```

        ```text
        {"id":2,"amount":500}
        ```

        The function gets a record's value and an AgentContext. The values that it returns or yields go to the sink. With `batch=True`
        it gets a `pa.RecordBatch` in place of the value. `durable=True` needs a journal (docs/durable-agents.md), `process=` records
        that are partitioned by `key=` (docs/scale-out.md). docs/agents.md describes all options. Raises UserError, which names the
        agent.

        `topic`: a topic, a Source, or a list of them; by default the function's name.
        `name`: the last part of the agent's id, by default the function's name.
        """
        if callable(topic) and not isinstance(topic, str):
            raise UserError("@app.agent is written with brackets", hint="@app.agent() or @app.agent('topic')")

        def register(func: F) -> F:
            label: Any = name or getattr(func, "__name__", "")
            if label:  # a functools.partial has no name
                checked_name(label, f"app {self.id}: agent name")
            self.agent_runtime.add(self._agent_spec(func, topic, label, options))
            return func

        return register

    def _agent_spec(self, func: Callable[..., Any], topic: Any, name: str, options: Mapping[str, Any]) -> AgentSpec:
        for each in topic if isinstance(topic, list | tuple) else [topic]:
            check_start(each, options.get("start") or "earliest", f"agent {self.id}.{name}")
        start = self.settings.start if options.get("start") is None else options["start"]
        spec = AgentSpec.of(f"{self.id}.{name}", func, topic, name=name, **{**options, "start": start})
        return replace(spec, rules=(self.policy, self._ledger_of_forks))

    async def _ledger_of_forks(self) -> "Ledger | None":
        return self.accounts

    def llm_agent(
        self,
        topic: Any,
        engine: "ExecutionEngine",
        *,
        prompt: str | Callable[[Any], object] | None = None,
        reply: Callable[[Any, "AgentResult"], Any] | None = None,
        session: bool | None = None,
        name: str = "agent",
        **options: Unpack[LlmAgentOptions],
    ) -> "Agent":
        """Runs a model with tools over each record of a topic, as a durable agent: no unsafe tool is called twice, and no answer is paid
        for twice. Returns the agent.

        - `prompt`: a template over the fields of the record ("Summarize: {text}"), or a function of the message. By default the message
          is a text, or it has a field "prompt", "text" or "question".
        - `reply`: the function of message and AgentResult that returns the result for the sink. By default the result is the typed output,
          or {"content": …} without one; an output that is None is no result. If a sink cannot write outputs of this type, the app does
          not start.
        - `session`: True if a key has one conversation, which is kept in its state. By default it is True with `key=`.
        - `options`: those of `sabot.llm.Agent` (tools, instructions, output, …) and those of `App.agent` (key, sink, concurrency, …).

        If the answer of the model is wrong (it does not match `output`, or there is none after `max_turns`), or if a record makes no
        prompt, the record becomes a dead letter with its conversation, and the agent goes on. Other errors end the agent. `on_error=`
        decides for all of them.
        """
        from sabot.agents.durable.agent_functions import agent_function, check_template, sample_of
        from sabot.engine.calls.errors import RECORD_ERRORS
        from sabot.llm.agent import Agent

        checked_name(name, f"app {self.id}: agent name")
        own: dict[str, Any] = dict(options)
        wiring = {each: own.pop(each) for each in list(own) if each in options_of(AgentOptions)}
        where = f"llm_agent {name}"
        if wiring.get("durable") is False:
            raise UserError(f"{where}: durable=False", hint="in @app.agent without durable=True, await Agent(…).run(…)")
        if wiring.get("batch"):
            raise UserError(f"{where}: batch=True", hint="stream.map_llm(…) asks a model about columns")
        if wiring.get("tombstones"):
            raise UserError(
                f"{where}: tombstones=True", hint="a model is asked about a message, and a tombstone has none"
            )
        known = [*options_of(AgentOptions), *(each for each in inspect.signature(Agent).parameters if each != "engine")]
        if unknown := own.keys() - known:
            raise no_option(f"{where}: it", unknown, known)
        agent = Agent(engine, name=name, **own)
        keeps = wiring.get("key") is not None if session is None else session
        if isinstance(prompt, str):
            check_template(prompt, where)
        function = partial(agent_function, agent, prompt=prompt, reply=reply, session=keeps)
        spec = self._agent_spec(function(typed=False), topic, name, {"durable": True, **wiring})
        typed = not spec.writes_json
        buried = () if "on_error" in wiring else RECORD_ERRORS
        sample = sample_of(agent, typed=typed) if reply is None else None
        self.agent_runtime.add(replace(spec, func=function(typed=typed), buried=buried, sample=sample))
        return agent

    @cached_property
    def health(self) -> "HealthMonitor":
        """Health of child processes, which the metrics port tells of: `app.health.register("reviewer", child)`. Those of
        `process_agent` are in it.
        """
        from sabot.api.lifespan import Resource
        from sabot.process.health import HealthMonitor

        monitor = HealthMonitor(self.id, clock=self.spec.clock)
        self.agent_runtime.runner.watch.health = monitor
        self.lifespan.resources.append(Resource("health of processes", monitor.running))
        return monitor

    def process_agent(
        self,
        topic: Any,
        *,
        command: Sequence[str],
        stdin: bool = False,
        lines: "LineFormat" = "text",
        noise: Literal["fail", "skip"] = "fail",
        exit_record: bool = False,
        exit_codes: Collection[int] = (0,),
        environment: Mapping[str, str] | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        limits: "ResourceLimits | None" = None,
        trust: "Sandbox | TrustLevel | str | None" = None,
        pool: int | None = None,
        protocol: "PoolProtocol | None" = None,
        resume: Sequence[str] | None = None,
        session: str | None = None,
        live: str | None = None,
        effect: "EffectName | EffectClass | None" = None,
        in_doubt: "InDoubt | None" = None,
        name: str = "process",
        **options: Unpack[RecordAgentOptions],
    ) -> Callable[..., Any]:
        """Runs a program for each record of a topic, as a child process that ends with its worker. The lines that it writes go to the sink
        when it has ended well. Returns the function of the agent, for `sink=` of another agent and for `ctx.child`.

        - `command`: the program and its arguments, in which {field} is a field of the record. No shell reads them. A record without such a
          field becomes a dead letter. `stdin`: True gives the program the record as a line of JSON. `lines`: "text", or "json" if each line
          is a value. `noise`: "skip" leaves out lines that are no JSON, and counts them; with "fail" they are errors.
          `exit_record`: True adds a last result {"exit": 0, "lines": …, "cpu_seconds": …}. `exit_codes`: the codes with
          which the program ends well. Any other code, a signal, a limit and a time-out are errors of the agent, with the last lines of
          stderr.
        - `environment`, `working_dir`, `limits`, `trust`: the same as in `sabot.process.Command`. If the system does not have everything
          that a level of trust demands, the app does not start. `timeout`: the longest time of one run.
        - `pool`: the number of children that live on, and get one record after the other on stdin; so many records are processed at a
          time. `protocol`: "lines" if the children answer each record with one line, "json" if their lines name the record
          (docs/processes.md). If a child ends before it has answered a record, this is an error of the agent. In a durable agent the
          record is in doubt, or with `effect="idempotent"` tried again (`retries`, `backoff`).
        - `effect`, `in_doubt`: the same as in `@tool`, for durable agents. The run is one effect, by default "unsafe": if a crash leaves it
          in doubt, a person is asked, and `on_error="retry"` is refused. Without `durable=True` the record is read again after a crash,
          and the program runs again.
        - `resume`: for durable agents, the command with which the program goes on with a session of its own; {session} in it is the id of
          the session. A run that was cut off after it had named its session is not in doubt, and goes on this way. `session`: the field
          of the JSON lines that has the id, by default that of claude and opencode, else "session_id".
        - `live`: the topic that gets each line as soon as it is written, at least once, even if the run is cut off or fails.
        - `options`: those of `App.agent` (key, sink, concurrency, on_error, …).
        """
        from sabot.agents.programs.command import AgentCommand
        from sabot.agents.programs.runs import LiveLines

        own: dict[str, Any] = dict(options)
        timeout = own.pop("timeout", None)
        where, durable = f"process_agent {name}", own.get("durable", False)
        if unknown := own.keys() - options_of(AgentOptions):
            raise no_option(f"{where}: it", unknown, list(options_of(RecordAgentOptions)))
        if wrong := own.keys() & {"batch", "on_timer", "tombstones"}:
            raise UserError(
                f"{where}: it has no option {', '.join(sorted(wrong))}", hint="a program is run for each record"
            )
        if not durable and (effect is not None or in_doubt is not None):
            raise UserError(
                f"{where}: effect= and in_doubt= are of durable agents", hint="durable=True, or leave them out"
            )
        if resume is not None and (not durable or own.get("on_error") == "retry"):
            raise UserError(
                f"{where}: resume= is of durable agents, without on_error='retry'",
                hint='durable=True, on_error="skip": what was cut off goes on, what has failed is a dead letter',
            )
        checked_name(name, f"app {self.id}: agent name")
        told = None
        if live is not None:
            checked_topic(live, f"{where}: live")
            told = LiveLines(self.send, live, f"{self.id}.{name}", json=lines == "json", skip=noise == "skip")
        program = AgentCommand(
            where,
            command,
            stdin=stdin,
            lines=lines,
            noise=noise,
            exit_record=exit_record,
            exit_codes=exit_codes,
            environment=environment,
            working_dir=working_dir,
            limits=limits,
            trust=trust,
            timeout=timeout,
            pool=pool,
            protocol=protocol,
            resume=resume,
            session=session,
            live=told,
            health=(self.health, f"{self.id}.{name}"),
        )
        if pool is not None:
            if "concurrency" in own:
                raise UserError(f"{where}: concurrency= with pool=", hint="pool= says how many records at a time")
            own["concurrency"] = pool
        function: Callable[..., Any]
        if durable:
            again: dict[str, Any] = {}
            fails = own.get("on_error") == "retry"
            if fails or pool is not None:
                again = {
                    "retries": own.pop("retries", 3),
                    "backoff": own.pop("backoff", "100ms"),
                    "fails": fails,
                }
            if fails:
                own["on_error"] = "skip"  # the last error is a dead letter
            function = program.durable_function(name, effect or "unsafe", in_doubt or "ask", **again)
        else:
            function = program.function(name)
        spec = self._agent_spec(function, topic, name, own)
        if spec.schema is not None:
            program.check_schema(spec.schema, where)
        self.agent_runtime.add(replace(spec, check=program.words.of))
        if trust is not None:
            self.lifespan.starts.append(program.check_system)
        self.lifespan.resources += program.resources
        return function
