"""nginx as a bare reverse proxy: the floor of what any hop over HTTP/1.1 costs.

Owns how nginx is found and configured; refuses to change the machine: the package is unpacked, not installed."""

import shutil
import subprocess
from pathlib import Path
from string import Template
from typing import Final

from tests.bench.options import Options
from tests.bench.processes import AbsentError, ProcessGroup, answers_ok, free_port, process_tree, wait_until
from tests.bench.systems.system import Route, run_installer

_CONFIGURATION: Final = Template("""
daemon off;
worker_processes 2;
pid $prefix/nginx.pid;
error_log stderr error;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $prefix/body;
    proxy_temp_path $prefix/proxy;
    fastcgi_temp_path $prefix/fastcgi;
    uwsgi_temp_path $prefix/uwsgi;
    scgi_temp_path $prefix/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 32m;
    keepalive_requests 100000000;
    upstream canned {
        server 127.0.0.1:$upstream_port;
        keepalive 512;
        keepalive_requests 100000000;
    }
    server {
        listen 127.0.0.1:$port backlog=2048;
        location / {
            proxy_pass http://canned;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
    }
}
""")


class Nginx:
    """The binary on the PATH, or the Debian package unpacked below the peers' folder."""

    name = "nginx"

    def __init__(self, options: Options) -> None:
        self._prefix: Path = options.peers_dir / "nginx"
        self._log = options.logs_dir / "nginx.log"
        self._binary = ""
        self._group: ProcessGroup | None = None
        self._port = 0

    def install(self) -> None:
        self._prefix.mkdir(parents=True, exist_ok=True)
        unpacked = self._prefix / "root/usr/sbin/nginx"
        on_path = shutil.which("nginx")
        if on_path is None and not unpacked.exists():
            self._unpack()
        self._binary = on_path or str(unpacked)

    def _unpack(self) -> None:
        if shutil.which("apt-get") is None:
            raise AbsentError("nginx is not installed, and there is no apt-get to fetch it")
        run_installer(["sh", "-c", 'cd "$0" && apt-get download nginx', str(self._prefix)])
        packages = sorted(self._prefix.glob("nginx_*.deb"))
        if not packages:
            raise AbsentError("apt-get fetched no nginx package")
        run_installer(["dpkg", "-x", str(packages[-1]), str(self._prefix / "root")])

    def start(self, upstream_port: int) -> None:
        self._port = free_port()
        path = self._prefix / "nginx.conf"
        values = {"prefix": self._prefix, "port": self._port, "upstream_port": upstream_port}
        path.write_text(_CONFIGURATION.substitute(values))
        command = [self._binary, "-e", "stderr", "-p", str(self._prefix), "-c", str(path)]
        self._group = ProcessGroup(command, self._log)

    def wait_ready(self) -> tuple[Route, ...]:
        assert self._group is not None
        wait_until(lambda: answers_ok(self._port, "/health"), self._group, 15)
        return (Route("nginx", (self._port,), "canned"),)

    def pids(self) -> frozenset[int]:
        return process_tree([self._group.pid]) if self._group else frozenset()

    def version(self) -> str:
        said = subprocess.run([self._binary, "-v", "-e", "stderr"], capture_output=True, text=True, check=False)
        return f"{said.stderr.strip().rpartition(': ')[2]}, 2 workers"

    def stop(self) -> None:
        if self._group:
            self._group.stop()
