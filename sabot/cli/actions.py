"""`sabot actions`: lists the questions of a journal and answers them, also while no process owns the journal."""

from json import loads
from typing import Annotated, Any

import typer

from sabot.agents.actions import ActionRecord, ActionStatus
from sabot.agents.job_view import JobView
from sabot.agents.questions import ANSWERS, InboxQuestion, check_answer, find_question, read_questions
from sabot.agents.store import as_json, shown_json
from sabot.cli.journal import By, Json, Place, arguments_text, json_of, post, quietly, reading, this_user
from sabot.cli.loading import WrongUse
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line, moment, shortened
from sabot.errors import UserError
from sabot.jobs.history import IN_DOUBT, LOOK_UP
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
            found = read_questions(reader, everything=everything)
        if json:
            for each in found:
                json_line(_facts(each))
            return
        columns(["action", "type", "status", "until", "token", "question"], [_row(each) for each in found])

    quietly(work)


def _row(question: InboxQuestion) -> list[object]:
    action = question.action
    until = "" if action.expires_at is None else moment(round(action.expires_at * 1000))
    text = shortened(_text(action), 90)
    return [action.action_id, action.type, question.status, until, action.resume_token, text]


def _text(action: ActionRecord) -> str:
    if action.type == IN_DOUBT and "effect" in action.payload:
        return f"was {action.payload['effect']}{arguments_text(action.payload.get('arguments'))} done?"
    if action.approves_effect:
        asked = f"may {action.payload['effect']}{_arguments_shown(action)} be done?"
        return f"{asked} {action.payload.get('reason') or action.payload['rule']}"
    return shown_json(action.payload, "payload").decode()


def _arguments_shown(action: ActionRecord) -> str:
    """Returns the arguments of the effect as text; for a model, its last message."""
    arguments = action.payload.get("arguments")
    if action.payload.get("kind") == "model" and isinstance(arguments, list) and arguments:
        return f" {shown_json(arguments[-1], 'a request').decode()}"
    return arguments_text(arguments)


def _facts(question: InboxQuestion) -> dict[str, Any]:
    facts: dict[str, Any] = loads(shown_json(question.action, "the action"))
    return {**facts, "answered": question.answered or question.action.status is ActionStatus.RESOLVED}


@actions.command("show")
def show_action(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="The id of an action, or its token.")],
    place: Place,
    kafka: Kafka = None,
) -> None:
    """Show one question as JSON."""

    def work() -> None:
        with reading(place, kafka) as reader:
            found = find_question(reader, action)
        json_line(_facts(found))

    quietly(work)


@actions.command("resolve")
def resolve_action(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token of the action, from `sabot actions list`.")],
    place: Place,
    kafka: Kafka = None,
    approve: Annotated[bool, typer.Option("--approve", help='Answer {"approved": true}.')] = False,
    reject: Annotated[bool, typer.Option("--reject", help='Answer {"approved": false}.')] = False,
    done: Annotated[
        bool, typer.Option("--done", help="For an effect in doubt: the call was made; with --with its result.")
    ] = False,
    not_done: Annotated[bool, typer.Option("--not-done", help="For an effect in doubt: make the call again.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="For an effect in doubt: raise an error in the job.")
    ] = False,
    look_up: Annotated[
        bool, typer.Option("--look-up", help="For an effect in doubt: ask the tool's reconcile= once more.")
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
    arguments: Annotated[
        str | None,
        typer.Option(
            "--arguments",
            metavar="JSON",
            help="With --approve: the arguments of the call that change, as a JSON object.",
            show_default=False,
        ),
    ] = None,
    always: Annotated[
        str,
        typer.Option(
            "--always",
            metavar="WORD",
            help="With --approve: also for later calls of this tool by this rule, in the whole `job`, `session` or `scope`.",
            show_default=False,
        ),
    ] = "",
    comment: Annotated[
        str,
        typer.Option(
            "--comment",
            metavar="TEXT",
            help="The reason: the job gets that of a refusal, and the journal keeps it.",
            show_default=False,
        ),
    ] = "",
    by: By = "",
) -> None:
    """Answer a question. Each question takes one answer.

    The answer is stored durably when the command ends, whether the journal's owner runs or not.
    """
    given = {"approve": approve, "reject": reject, "done": done, "not-done": not_done, "abandon": abandon}
    given["look-up"] = look_up

    def work() -> None:
        said = {f"--{word}": ANSWERS[word] for word, chosen in given.items() if chosen}
        answer = _answer(said, None if with_ is None else json_of(with_, "--with"), given=with_ is not None)
        changes = None if arguments is None else json_of(arguments, "--arguments")
        if changes is None and arguments is not None:  # in an answer null stands for no change
            raise WrongUse("--arguments is null", hint="""an object: '{"amount": 50}'""")
        more = {"arguments": changes, "always": always or None, "comment": comment or None}
        answer = answer | {name: each for name, each in more.items() if each is not None}
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


def _check(asked: ActionRecord, option: str, answer: dict[str, Any]) -> None:
    """Raises WrongUse if the answer does not fit the kind of the question."""
    try:
        check_answer(asked, option.removeprefix("--"), answer)
    except UserError as error:
        hint = "give --approve, --reject, or --with JSON"
        if asked.type == IN_DOUBT:
            hint = "give --done (with --with JSON for the result of the call), --not-done (makes the call again), or --abandon"
            if LOOK_UP in asked.payload.get("answers", ()):
                hint += "; or --look-up, which asks the tool's reconcile= again"
            if wanted := InboxQuestion(asked).result_wanted:
                hint += f". The result: {wanted}"
        elif asked.approves_effect:
            hint = error.hint or "give --approve or --reject"
            hint = "give --approve or --reject" if not isinstance(answer.get("approved"), bool) else hint
        raise WrongUse(f"{option} does not answer this question: {error.message}", hint=hint) from error
