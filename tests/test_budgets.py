"""What a reader has to learn has a budget: public names per package, members per contract.

A budget may fall with every change. To raise one, write a record in `docs/decisions/` that says why the new name pays for what a reader has
to learn, and name the record beside the number here.
"""

import ast

import pytest

from tools.source_tree import ROOT, nodes_of, tree_of

NAMES = {  # what `from sabot.X import …` offers, by the stub of the package
    "": 139,  # docs/decisions/078, 079, 066, 084, 088
    "agents": 137,  # docs/decisions/043
    "connectors": 22,  # docs/decisions/051, 086
    "journal": 8,
    "llm": 68,
    "mcp": 47,
    "process": 101,  # docs/decisions/068
    "testing": 19,
}

MEMBERS = {  # of a contract that more than one class fulfils: methods, properties and attributes
    "api/nodes/node.py:Node": 27,  # 058
    "checkpoint/places/base.py:Place": 28,
    "codecs/base.py:Codec": 4,
    "codecs/base.py:Format": 13,
    "connectors/base.py:Delivers": 8,  # 051, 109
    "connectors/base.py:Sink": 6,
    "connectors/base.py:Source": 6,
    "jobs/guard.py:EffectGuard": 16,  # 044
    "jobs/owner.py:JobOwner": 15,
    "journal/base.py:Journal": 15,  # 060
    "journal/base.py:JournalReader": 13,  # 060
    "llm/provider.py:Provider": 7,
    "operators/base.py:FilledFromTable": 3,
    "operators/base.py:HoldsMarks": 2,
    "operators/base.py:Operator": 8,
    "operators/base.py:Restorable": 2,
    "operators/base.py:Stateful": 7,
    "operators/base.py:WaitsForCalls": 4,
}
HINT = "say in docs/decisions/ why it pays for what a reader has to learn, and name the record beside its budget in tests/test_budgets.py"


def stubs() -> dict[str, int]:
    found = {}
    for path in [ROOT / "__init__.pyi", *sorted(ROOT.glob("*/__init__.pyi"))]:
        name = "" if path.parent == ROOT else path.parent.name
        found[name] = sum(len(node.names) for node in tree_of(path).body if isinstance(node, ast.ImportFrom))
    return found


def members(contract: str) -> set[str]:
    """The public names that the body of a class defines."""
    place, _, name = contract.partition(":")
    (body,) = (node.body for node in nodes_of(ROOT / place, ast.ClassDef) if node.name == name)
    found: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=each) | ast.AsyncFunctionDef(name=each) | ast.AnnAssign(target=ast.Name(id=each)):
                found.add(each)
            case ast.Assign(targets=targets):
                found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return {each for each in found if not each.startswith("_")}


def test_a_package_offers_no_more_names_than_its_budget() -> None:
    found = stubs()
    assert found.keys() == NAMES.keys(), (
        "a package with an __init__.pyi has a line in NAMES of tests/test_budgets.py, a package that is gone has none"
    )
    assert {name: count for name, count in found.items() if count > NAMES[name]} == {}, HINT


@pytest.mark.parametrize("contract", MEMBERS)
def test_a_contract_has_no_more_members_than_its_budget(contract: str) -> None:
    found = members(contract)
    assert found, "the walk sees nothing"
    assert len(found) <= MEMBERS[contract], f"{HINT}: {sorted(found)}"


def test_a_budget_with_room_is_lowered() -> None:
    """What a change has saved, the next one does not spend unseen."""
    wide = {name: count for name, count in stubs().items() if count < NAMES[name]}
    wide |= {name: len(members(name)) for name, most in MEMBERS.items() if len(members(name)) < most}
    assert wide == {}, "lower these budgets in tests/test_budgets.py to the numbers shown"
