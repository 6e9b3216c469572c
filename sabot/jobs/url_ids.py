"""The ids of jobs in a form for URLs. An id has slashes, and may have any characters, so that a web framework would not
find `/jobs/{id}`. The other form has only characters that no URL escapes.

   kernel.refund/9f86~3  ◀─▶  kernel.refund~~9f86~3          orders/zürich/7  ◀─▶  ~b3JkZXJzL3rDvHJpY2gvNw
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

_PLAIN = re.compile(r"[\w.-]+(?:[/~][\w.-]+)*", re.ASCII)


def url_id(job_id: str) -> str:
    """Returns the id in the form for URLs: letters, digits, and the characters `-`, `.`, `_` and `~`. Two ids never have
    the same form. `stored_id` returns the id.
    """
    if _PLAIN.fullmatch(job_id):
        return job_id.replace("/", "~~")
    return "~" + urlsafe_b64encode(job_id.encode(errors="surrogatepass")).decode().rstrip("=")


def stored_id(text: str) -> str:
    """Returns the id whose form for URLs this is. Returns the text itself if it is no such form."""
    if "~" not in text:
        return text
    if not text.startswith("~"):
        job_id = text.replace("~~", "/")
    else:
        try:
            job_id = urlsafe_b64decode(text[1:] + "=" * (-len(text[1:]) % 4)).decode()
        except ValueError:
            return text
    return job_id if url_id(job_id) == text else text
