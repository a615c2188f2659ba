"""Several processes as one server: a supervisor, and the workers it keeps."""

from modelserve.workers.control import reload, route, status
from modelserve.workers.serving import serve_workers
from modelserve.workers.settings import TLSFiles

__all__ = ["TLSFiles", "reload", "route", "serve_workers", "status"]
