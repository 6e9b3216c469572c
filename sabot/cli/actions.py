"""`sabot actions`: lists the questions of a journal and answers them, also while no process owns the journal."""

from json import loads
from typing import Annotated, Any

import typer

from sabot.agents.actions import ActionRecord, ActionStatus, check_resolution
from sabot.agents.job_view import JobView
from sabot.agents.store import as_json
from sabot.cli.journal import By, Json, Place, arguments_text, json_of, post, quietly, reading, this_user
from sabot.cli.loading import WrongUse
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line, moment, shortened
from sabot.errors import UserError
from sabot.jobs.history import IN_DOUBT
from sabot.journal.base import JournalReader
from sabot.journal.entries import Letter

actions = typer.Typer(help="List and answer questions to people.", no_args_is_help=True, rich_markup_mode=None)


@actions.command("list")
def list_actions(
    place: Place,
    kafka: Kafka = None,
    everything: Annotated[bool, typer.Option("--all", help="List closed questions too.")] = False,
    json: Json = False,
) -> None:
    """List the questions that wait for an answer, with the token that answers each."""

    def work() -> None:
        with reading(place, kafka) as reader:
            known, waiting = JobView.of(reader), _answers(reader)
        found = [each for each in known.actions.values() if everything or each.status is ActionStatus.PENDING]
        if json:
            for action in found:
                json_line(_action_facts(action, waiting))
            return
        rows = [
            [
                each.action_id,
                each.type,
                _status(each, waiting),
                "" if each.expires_at is None else moment(round(each.expires_at * 1000)),
                each.resume_token,
                shortened(_question(each), 90),
            ]
            for each in found
        ]
        columns(["action", "type", "status", "until", "token", "question"], rows)

    quietly(work)


def _question(action: ActionRecord) -> str:
    if action.type == IN_DOUBT and "effect" in action.payload:
        return f"was {action.payload['effect']}{arguments_text(action.payload.get('arguments'))} done?"
    if action.approves_effect:
        asked = f"may {action.payload['effect']}{_arguments_shown(action)} be done?"
        return f"{asked} {action.payload.get('reason') or action.payload['rule']}"
    return as_json(action.payload, "payload").decode()


def _arguments_shown(action: ActionRecord) -> str:
    """Returns the arguments of the effect as text; for a model, its last message."""
    arguments = action.payload.get("arguments")
    if action.payload.get("kind") == "model" and isinstance(arguments, list) and arguments:
        return f" {as_json(arguments[-1], 'a request').decode()}"
    return arguments_text(arguments)


def _answers(reader: JournalReader) -> dict[str, Letter]:
    """Returns the answers in the inbox that the journal's owner has not read yet, by token."""
    return {letter.token: letter for letter in reader.letters() if letter.kind == "answer"}


def _status(action: ActionRecord, waiting: dict[str, Letter]) -> str:
    if action.status is ActionStatus.PENDING and action.resume_token in waiting:
        return "answered, not taken yet"
    return action.status


def _action_facts(action: ActionRecord, waiting: dict[str, Letter]) -> dict[str, Any]:
    facts: dict[str, Any] = loads(as_json(action, "the action"))
    return {**facts, "answered": action.resume_token in waiting or action.status is ActionStatus.RESOLVED}


@actions.command("show")
def show_action(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="The id of an action, or its token.")],
    place: Place,
    kafka: Kafka = None,
) -> None:
    """Show one question as JSON."""

    def work() -> None:
        with reading(place, kafka) as reader:
            known, waiting = JobView.of(reader), _answers(reader)
        record = known.actions.get(action) or known.of_token(action)
        if record is None:
            raise UserError(
                f"{reader.where} has no action with the id or token {action}",
                hint="sabot actions list --all shows them",
            )
        json_line(_action_facts(record, waiting))

    quietly(work)


@actions.command("resolve")
def resolve_action(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token of the action, from `sabot actions list`.")],
    place: Place,
    kafka: Kafka = None,
    approve: Annotated[bool, typer.Option("--approve", help='Answer {"approved": true}.')] = False,
    reject: Annotated[bool, typer.Option("--reject", help='Answer {"approved": false}.')] = False,
    done: Annotated[bool, typer.Option("--done", help="For an effect in doubt: the call was made.")] = False,
    not_done: Annotated[bool, typer.Option("--not-done", help="For an effect in doubt: make the call again.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="For an effect in doubt: raise an error in the job.")
    ] = False,
    with_: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="JSON",
            help="The answer as a JSON object; with --done: the result of the call.",
            show_default=False,
        ),
    ] = None,
    by: By = "",
) -> None:
    """Answer a question. Each question takes one answer.

    The answer is stored durably when the command ends, whether the journal's owner runs or not.
    """
    words: dict[str, tuple[bool, dict[str, Any]]] = {
        "--approve": (approve, {"approved": True}),
        "--reject": (reject, {"approved": False}),
        "--done": (done, {"outcome": "done"}),
        "--not-done": (not_done, {"outcome": "not_done"}),
        "--abandon": (abandon, {"outcome": "abandon"}),
    }

    def work() -> None:
        said = {word: answer for word, (chosen, answer) in words.items() if chosen}
        answer = _answer(said, None if with_ is None else json_of(with_, "--with"), given=with_ is not None)
        with reading(place, kafka) as reader:
            question = reader.question(token)
            asked = None if question is None else JobView.of(reader, question.job).of_token(token)
        if asked is not None:
            _check(asked, next(iter(said), "--with"), answer)
        post(place, kafka, Letter("answer", token, body=as_json(answer, "the answer"), by=by or this_user()))
        typer.echo("answered")

    quietly(work)


def _answer(said: dict[str, dict[str, Any]], value: Any, *, given: bool) -> dict[str, Any]:
    """Returns the one answer that the options name. Raises WrongUse if they name none, or several.

    `said`: the answers that options such as --approve stand for, by option. `given`: True if --with was given. `value`: its value.
    """
    if list(said) == ["--done"] and given:
        return {"outcome": "done", "result": value}
    if len(said) + given != 1:
        both = " and ".join([*said, *(["--with"] if given else [])])
        raise WrongUse(
            f"{both} are several answers: a question takes one" if both else "no answer is given",
            hint="give --approve, --reject, or --with JSON; for an effect in doubt --done, --not-done, or --abandon",
        )
    if not given:
        return next(iter(said.values()))
    if not isinstance(value, dict):
        raise WrongUse("the value of --with is not a JSON object", hint="write an object: '{\"choice\": 2}'")
    return value


def _check(asked: ActionRecord, word: str, answer: dict[str, Any]) -> None:
    """Raises WrongUse if the answer does not fit the kind of the question."""
    try:
        check_resolution(asked, answer)
    except UserError as error:
        hint = (
            "give --done (with --with JSON for the result of the call), --not-done (makes the call again), or --abandon"
        )
        if asked.approves_effect:
            hint = "give --approve or --reject"
        raise WrongUse(f"{word} does not answer this question: {error.message}", hint=hint) from error
    if asked.type != IN_DOUBT and word in ("--done", "--not-done", "--abandon"):
        raise WrongUse(
            f"{word} answers only effects in doubt, and action {asked.action_id} is a question of type {asked.type}",
            hint="give --approve, --reject, or --with JSON",
        )
