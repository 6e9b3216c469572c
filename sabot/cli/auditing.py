"""`sabot audit`: shows the decisions of policy on the effects of a job."""

from dataclasses import asdict

from sabot.agents.policy.auditing import AuditRecord, audit_job
from sabot.cli.agent_jobs import JobId
from sabot.cli.journal import Json, Place, arguments_text, quietly, reading
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line, moment, shortened
from sabot.errors import UserError

_WIDTH = 60


def audit(job: JobId, place: Place, kafka: Kafka = None, json: Json = False) -> None:
    """Show which effects of a durable job were allowed, by which rule, and who approved them. --json adds arguments and all notes."""

    def work() -> None:
        with reading(place, kafka) as reader:
            found = list(audit_job(reader, job))
            if not found and next(iter(reader.history.entries(job)), None) is None:
                raise UserError(f"{reader.where} has no entry of job {job}", hint="sabot jobs list shows the jobs")
        if json:
            for each in found:
                json_line(asdict(each))
            return
        rows = [[*_effect_cells(each), *_decision_cells(each), each.outcome or "open"] for each in found]
        columns(["effect", "asked", "what", "for", "decision", "rule", "version", "why", "outcome"], rows)

    quietly(work)


def _effect_cells(each: AuditRecord) -> list[object]:
    said = arguments_text(each.arguments) if each.kind == "call" and isinstance(each.arguments, list) else ""
    if said[:1] != "(":  # the request to a model is not a list of arguments
        said = ""
    who = "/".join(filter(None, (each.scope, each.principal)))
    name = f"{each.name} in place of {each.in_place_of}" if each.in_place_of else each.name + said
    return [each.ordinal, moment(round(each.asked_at * 1000)), shortened(name, _WIDTH), who]


def _decision_cells(each: AuditRecord) -> list[object]:
    decision = each.decision or "none"
    if each.approval:
        decision = f"{decision}: {each.approval}" + (f" by {each.by}" if each.by else "")
        decision += f" with {arguments_text([[], each.edited])}" if each.edited else ""
    elif each.model:
        decision = f"{decision} to {each.model}"
    why = "; ".join(filter(None, (each.reason, *each.notes)))
    return [decision, each.rule, each.version, shortened(why, _WIDTH)]
