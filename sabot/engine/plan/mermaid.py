"""The plan as a Mermaid graph."""

from sabot.engine.operators.layout.stages import Edge, Step
from sabot.engine.plan.stages import Plan


def mermaid(plan: Plan) -> str:
    """Returns the plan as a Mermaid flowchart, with stages as boxes around their steps."""
    lines = ["flowchart LR"]
    links: list[str] = []
    first = {stage.id: _first(stage.id) for stage in plan.stages}
    for stage in plan.stages:
        lines.append(
            f"  subgraph {_id(stage.id)}[stage {stage.id}{f' x{stage.parallelism}' if stage.parallelism > 1 else ''}]"
        )
        if stage.agent is not None:
            lines.append(f"    {first[stage.id]}[[{_quoted(f'agent {stage.id}')}]]")
        elif stage.reading is not None:
            lines.append(f"    {first[stage.id]}[/{_quoted(f'read {stage.reading.node.name}')}/]")
        elif stage.sink is not None:
            sink = stage.sink[0]
            lines.append(
                f"    {first[stage.id]}[\\{_quoted(f'write {sink if isinstance(sink, str) else sink.name}')}\\]"
            )
        else:
            lines.append(f"    {first[stage.id]}(( ))")
        for step in stage.steps():
            lines.append(f"    {_id(step.id)}[{_quoted(step.text)}]")
        lines.append("  end")
        _link(first[stage.id], stage.targets, first, links)
        if stage.dead_letters is not None:
            links.append(f"  {first[stage.id]} -. dead letters .-> {first[stage.dead_letters.target.id]}")
    return "\n".join(lines + links)


def _link(origin: str, targets: list[Step | Edge], first: dict[str, str], links: list[str], arrow: str = "-->") -> None:
    for target in targets:
        if isinstance(target, Edge):
            words = ["all"] if target.everywhere else [f"by {', '.join(target.keys)}"] if target.keys else []
            words += ["changes"] if target.changes else []
            label = f"|{_quoted(', '.join(words))}|" if words else ""
            links.append(f"  {origin} {arrow}{label} {first[target.target.id]}")
        else:
            links.append(f"  {origin} {arrow} {_id(target.id)}")
            _link(_id(target.id), target.targets, first, links)
            for name, branch in target.branches.items():
                _link(_id(target.id), branch, first, links, f"-. {name} .->")


def _id(name: str) -> str:
    return "s" + "".join(c if c.isalnum() else "_" for c in name)


def _first(stage_id: str) -> str:
    return _id(f"{stage_id} in")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "#quot;") + '"'
