"""The console: the page of a running app, for a browser; and the jobs of a kernel by HTTP, for programs (`jobs_app`).

`console` opens it beside a run. `shown` is an app as the screens see it: they ask nothing else about an app. A server
of `base/http_server` runs in a thread with an event loop of its own, so that the page answers while a function of the
user blocks the app's loop. `guard` stands before all pages: names of the host, sessions, origins and forms; `access`
keeps tokens and sessions, and `payloads` decides which values of data pages may show. `records` makes records of the
app's statistics. `reader` has processes for reads that may be large. Each module `*_screens` has the screens of one
theme with their actions, as a `ScreenGroup` of `screen`; `screens` puts the groups together, and `app_pages` renders
them below the path of the app; `pages` has the pages of the whole server, and `charts` draws.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
