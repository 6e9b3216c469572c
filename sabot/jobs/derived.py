"""What is derived from the key of a journal: so a crash before it is written down changes nothing."""

from hashlib import blake2b


def job_seed(job_id: str, runs: int, key: bytes) -> bytes:
    """What a job draws by lot comes of this. runs: how many histories it has begun. key: of the journal."""
    return blake2b(f"{job_id}\0{runs}".encode(), key=key, digest_size=32).digest()


def question_token(key: bytes, job_id: str, ordinal: int, about: str = "") -> str:
    """The secret word of a question, fit for a command line. Derived, so a crash before INTENT changes nothing. key: of the journal."""
    name = f"token\0{job_id}\0{ordinal}\0{about}"
    return blake2b(name.encode(), key=key, digest_size=20).hexdigest()
