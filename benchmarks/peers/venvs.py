"""Virtual environments of peers, in .venv-peers/: made and filled when a peer is first used, and when its requirements have changed."""

import shutil
import subprocess
import sys
from pathlib import Path

from jvm import NotThere

__all__ = ["VENVS", "prepare", "python_of"]

HERE = Path(__file__).parent
VENVS = HERE.parents[1] / ".venv-peers"


def python_of(peer: str, interpreter: str = sys.executable) -> str:
    """The Python of the peer's environment, with what requirements-PEER.txt names. Raises CalledProcessError: it cannot be installed."""
    folder = VENVS / f"{peer}-{Path(interpreter).name}"
    wanted = HERE / f"requirements-{peer}.txt"
    mark = folder / "requirements.txt"  # written last
    if not mark.exists() or mark.read_text() != wanted.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", "-r", wanted], check=True, stdout=sys.stderr)
        mark.write_text(wanted.read_text())
    return str(folder / "bin" / "python")


def prepare(peer: str) -> None:
    """Its environment is there afterwards. Raises NotThere."""
    try:
        python_of(peer)
    except subprocess.CalledProcessError as error:
        raise NotThere("its packages cannot be installed") from error
