"""The `pyproject.toml` of the projects that `sabot init` writes."""


def pyproject(name: str, packaging: str) -> str:
    """Returns the file of a project with this name. `packaging`: its lines about what is installed."""
    return f"""[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["sabot"]

[project.optional-dependencies]
test = ["pytest"]

{packaging}
[tool.pytest.ini_options]
pythonpath = ["."]
"""
