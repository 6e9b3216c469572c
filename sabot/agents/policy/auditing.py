"""An audit of a job, made from its entries: which calls were allowed and why, the answers of people, and the outcomes
of the calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from sabot.agents.entry_values import as_plain, value_of
from sabot.agents.job_effects import effects_of
from sabot.agents.job_view import EffectView, JobState, JobView, edit_of_effect
from sabot.base.stored_names import stored_name
from sabot.errors import PolicyDenied
from sabot.jobs.answers import is_approved, says_yes
from sabot.jobs.guard import CONFIRM, Decision, GuardVerdict, decode_verdict, stood_in
from sabot.journal.base import JournalReader
from sabot.journal.entries import UNSENT, Attempt, StoredBody


@dataclass(slots=True)
class AuditRecord:
    """The record of one call that a job has asked for: a call of a tool or a model, or the beginning of a child job.
    If a model failed, and a fallback model was asked instead, the fallback model has a record of its own. Its field
    `in_place_of` has the name of the first model.

    - `ordinal`: the number of the call's effect in the job. `kind`, `name`: "call" or "child", and the tool, model or
      agent.
    - `asked_at`: the time at which the decision was recorded, in seconds since 1970.
    - `scope`, `principal`: the tenant and the person for whom the job ran.
    - `decision`: the decision on the call, for example "allow". It is "" if the app had no policy and no budget.
    - `rule`: the name of the rule that led to the decision. It is "default" if a policy has denied the call because no
      rule allows it, and "" if no rule had an opinion.
    - `version`: the version of the rules. `reason`: the reason for the decision, for people.
    - `notes`: the reasons of other rules that matched, but whose decisions were milder.
    - `model`: the model that a rule chose instead of the one in the call, or "".
    - `hidden`: True if texts in the call were replaced by `***`.
    - `approval`: "" if no person was asked. Otherwise "waiting", "approved", "rejected", "expired" or "cancelled".
    - `by`: the name of the person who answered, or "".
    - `outcome`: "ok", or the type of the error. It is "" if there is no result yet, and "failed" for a model in whose
      place another one was asked.
    - `arguments`: the arguments of the call, or None if the journal has stored them apart because they are long.
    - `edited`: the arguments that the person has changed who has approved the call, with their new values; None if none
      were changed. `arguments` has the values before.
    """

    job_id: str
    ordinal: int
    kind: str
    name: str
    asked_at: float
    scope: str
    principal: str
    decision: str = ""
    rule: str = ""
    version: str = ""
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    model: str = ""
    hidden: bool = False
    approval: str = ""
    by: str = ""
    outcome: str = ""
    arguments: Any = None
    in_place_of: str = ""
    edited: dict[str, Any] | None = None


def audit_job(reader: JournalReader, job_id: str) -> Iterator[AuditRecord]:
    """Yields a record for each call of a job, in the order in which the job asked for the calls. Each fallback model of
    a call has a record of its own, after the record of the call. Yields nothing if the journal has no entries of the
    job. Blocks.
    """
    view, entries = JobView(), [entry for _, entry in reader.history.entries(job_id)]
    effects = effects_of(view, entries)
    job = view.states.get(job_id, JobState(job_id))
    notes = [entry for entry in entries if isinstance(entry, Attempt) and entry.note not in (b"", UNSENT)]
    for ordinal, effect in effects.items():
        if effect.intent.kind not in ("call", "child"):
            continue
        record = _record(effect, job)
        others = [_stands_in(entry, record) for entry in notes if entry.ordinal == ordinal]
        asked = [each for each in others if not each.outcome]
        if asked:  # the result belongs to the last model that was asked
            asked[-1].outcome = record.outcome
            for each in (record, *asked[:-1]):
                each.outcome = "failed"
        yield record
        yield from others


def _stands_in(entry: Attempt, first: AuditRecord) -> AuditRecord:
    """Returns the record of a fallback model that was to be asked instead of the first model of a call. `entry` is
    the journal entry with the decision on the fallback model, and `first` is the record of the first model.
    """
    verdict = decode_verdict(entry.note)
    assert verdict is not None
    denied = verdict.error if verdict.decision is Decision.DENY else stored_name(PolicyDenied)
    return _judged(
        replace(
            first,
            name=verdict.about,
            asked_at=entry.at_ms / 1000,
            approval="",
            by="",
            outcome="" if stood_in(entry) else denied,
            in_place_of=first.model or first.name,
        ),
        verdict,
    )


def _record(effect: EffectView, job: JobState) -> AuditRecord:
    intent, verdict = effect.intent, decode_verdict(effect.intent.note)
    body = b"" if isinstance(intent.body, StoredBody) else intent.body
    record = AuditRecord(
        intent.job,
        intent.ordinal,
        intent.kind,
        intent.name if verdict is None else verdict.about or intent.name,
        intent.at_ms / 1000,
        job.scope or job.agent.rpartition(".")[0],
        job.principal,
        outcome=effect.outcome,
        arguments=as_plain(value_of(intent, body)),
    )
    answer = next((entry for question, entry in reversed(effect.answers) if question == CONFIRM), None)
    if effect.question is not None and effect.question.name == CONFIRM:
        record.approval = "waiting"
    elif answer is not None and answer.outcome == "resolved":
        # earlier versions took approvals with any fields
        is_yes = is_approved(answer) or (effect.outcome == "ok" and says_yes(answer))
        record.approval, record.by = "approved" if is_yes else "rejected", answer.by
        record.edited = edit_of_effect(effect) or None
    elif answer is not None:
        record.approval = answer.outcome
    elif verdict is not None and verdict.decision is Decision.ASK and effect.state == "closed":
        record.approval = "cancelled"
    return record if verdict is None else _judged(record, verdict)


def _judged(record: AuditRecord, verdict: GuardVerdict) -> AuditRecord:
    record.decision, record.rule, record.version = verdict.decision.value, verdict.rule, verdict.version
    record.reason, record.notes = verdict.reason, list(verdict.notes)
    record.model, record.hidden = verdict.model, bool(verdict.hide)
    return record
