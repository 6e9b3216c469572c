"""The `pyproject.toml` of the projects that `sabot init` writes."""


def pyproject(name: str, packaging: str, *, needs: str = '"sabot"') -> str:
    """Returns the file of a project with this name. `packaging`: its lines about what is installed. `needs`: the packages that it
    depends on.
    """
    return f"""[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = [{needs}]

[project.optional-dependencies]
test = ["pytest"]

{packaging}
[tool.pytest.ini_options]
pythonpath = ["."]
"""
