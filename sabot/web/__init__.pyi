from sabot.web.http_jobs import Caller as Caller
from sabot.web.http_jobs import jobs_app as jobs_app
from sabot.web.http_jobs import sse as sse
