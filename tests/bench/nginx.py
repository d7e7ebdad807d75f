"""nginx as a gateway: it answers every POST at once and costs little CPU."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from handlers.demo.servers import Child, free_port

_ANSWER = (
    '{"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m","choices":[{"index":0,'
    '"text":" Hello, bench. Here are sixteen tokens of text for you, as asked.","finish_reason":"length"}],'
    '"usage":{"prompt_tokens":6,"completion_tokens":16,"total_tokens":22}}'
)
_CONFIG = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 60s; client_max_body_size 64m;
  default_type application/json;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{answer}'; }} }}
}}
"""


@contextlib.contextmanager
def nginx_gateway() -> Iterator[str]:
    """The base URL of a running nginx that answers every request with one completion."""
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as folder:
        port = free_port()
        config = Path(folder, "nginx.conf")
        config.write_text(_CONFIG.format(folder=folder, port=port, answer=_ANSWER), encoding="utf-8")
        command = [nginx_program() or "nginx", "-p", folder, "-c", str(config), "-e", f"{folder}/error.log"]
        pid = Path(folder, "nginx.pid")
        with Child("nginx", command) as child:
            child.wait_for(lambda _output: "up" if pid.exists() and pid.read_text().strip() else None)
            yield f"http://127.0.0.1:{port}"


def nginx_program() -> str | None:
    """The path of nginx, which Debian installs outside the PATH of normal users."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
