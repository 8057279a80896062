"""The sites in deploy/nginx, in a real nginx before the real servers. Skipped where nginx is not installed."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from wsgi_dbguard.lab.load import LoadGenerator, wait_for_http
from wsgi_dbguard.lab.process import Child, wait_until

# Debian has it where only root's PATH looks.
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
UWSGI_PARAMS = Path("/etc/nginx/uwsgi_params")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

Serve = Callable[..., tuple[Child, str]]
# nginx(server, *upstreams): its port, before servers on these unix sockets.
Nginx = Callable[..., int]

MAIN = """
{user}
daemon off;
pid {here}/nginx.pid;
error_log stderr info;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    uwsgi_temp_path {here}/uwsgi;
    fastcgi_temp_path {here}/fastcgi;
    scgi_temp_path {here}/scgi;
    include {here}/site.conf;
}}
"""

UNAVAILABLE_APPLICATION = """
def application(environ, start_response):
    start_response("503 Service Unavailable", [
        ("Retry-After", "7"), ("Content-Type", "application/problem+json"), ("Content-Length", "4")])
    return [b"gone"]
"""

ECHO_APPLICATION = """
def application(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given meanwhile: bound and not listening, which does not keep nginx from it."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]


@pytest.fixture
def nginx(site: Path, run_directory: Path, port: int, tmp_path: Path) -> Iterator[Nginx]:
    with ExitStack() as children:

        def run(server: str, *upstreams: Path) -> int:
            text = (site / "nginx" / f"{server}.conf").read_text()
            servers = "\n".join(rf"server unix:{path} max_fails=0;" for path in upstreams)
            text, replaced = re.subn(r"server unix:\S+ max_fails=0;", servers, text)
            assert replaced == 1
            text, replaced = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", text)
            assert replaced == 1
            (run_directory / "site.conf").write_text(text)
            if UWSGI_PARAMS.exists():
                shutil.copy(UWSGI_PARAMS, run_directory)
            # Its workers would run as nobody otherwise, who may not enter our directory.
            user = "user root;" if os.geteuid() == 0 else ""
            (run_directory / "nginx.conf").write_text(MAIN.format(here=run_directory, user=user))
            command = [str(NGINX), "-p", str(run_directory), "-c", str(run_directory / "nginx.conf")]
            subprocess.run([*command, "-t", "-q"], check=True, timeout=60)
            log = tmp_path / "nginx.log"
            children.callback(lambda: print(log.read_text(errors="replace")))
            child = children.enter_context(Child(command, log=log, cwd=run_directory))
            wait_until(lambda: not child.running or _listens(port), timeout=60, what="nginx")
            assert child.running, child.output()
            return port

        yield run


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=["gunicorn", "uwsgi"])
def behind_nginx(
    request: pytest.FixtureRequest, start: Callable[..., Child], run_directory: Path, nginx: Nginx
) -> Callable[..., str]:
    """`behind_nginx(*options, **variables)`: the URL of nginx before gunicorn, then before uWSGI, on a unix socket."""

    def run(*options: str, **variables: str) -> str:
        path = run_directory / "server.sock"
        if request.param == "gunicorn":
            start("gunicorn", "--config", "gunicorn.conf.py", "--bind", f"unix:{path}", *options, **variables)
        else:
            start("uwsgi", "--socket", str(path), *options, "--ini", "uwsgi.ini", **variables)
        wait_until(path.is_socket, timeout=60, what="the server's socket")
        url = f"http://127.0.0.1:{nginx(request.param, path)}"
        wait_until(lambda: wait_for_http(f"{url}/healthz") != 502, timeout=60, what="the server")
        return url

    return run


def test_requests_reach_the_application_and_its_database(behind_nginx: Callable[..., str]) -> None:
    url = behind_nginx()
    result = LoadGenerator(f"{url}/echo?token={{token}}", threads=8, requests=200, keep_alive=True).run()
    assert (result.failed, result.wrong) == (0, 0), result.errors


def test_the_health_endpoints_are_for_this_machine_however_their_path_is_written(
    behind_nginx: Callable[..., str],
) -> None:
    address = behind_nginx(WSGI_DBGUARD_HEALTH="/-/db").removeprefix("http://")
    assert [get(address, path, "127.0.0.1") for path in ("/-/db/readyz", "/-/db/", "/healthz")] == [200, 200, 200]
    spellings = ("/-/db", "/-/db/", "/-/db/readyz", "//-/db/livez", "/-//db/", "/%2D/db/", "/-/d%62%2f", "/x/../-/db/")
    assert {get(address, path, "127.0.0.2") for path in spellings} == {403}
    assert get(address, "/healthz", "127.0.0.2") == 200


def get(address: str, path: str, source: str) -> int:
    """The status, for a client with this address."""
    connection = http.client.HTTPConnection(address, timeout=60, source_address=(source, 0))
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status
    finally:
        connection.close()


def test_a_503_reaches_the_client_with_its_retry_after(behind_nginx: Callable[..., str], site: Path) -> None:
    (site / "wsgi.py").write_text(UNAVAILABLE_APPLICATION)
    url = behind_nginx()
    status, headers, body = post(url.removeprefix("http://"), b"")
    assert (status, body) == (503, b"gone")
    assert headers["Retry-After"] == "7"
    assert headers["Content-Type"] == "application/problem+json"


def post(address: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", "/notes", body)
        with connection.getresponse() as response:
            return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


class BreaksConnections(threading.Thread):
    """An upstream that reads a request and closes the connection without an answer; counts them."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.seen = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.start()

    def run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if not connection.recv(65536):
                    return
                self.seen += 1

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self.join()
        self._listener.close()


@pytest.fixture
def broken(run_directory: Path) -> Iterator[list[BreaksConnections]]:
    servers = [BreaksConnections(run_directory / f"{number}.sock") for number in range(2)]
    yield servers
    for server in servers:
        server.close()


@pytest.mark.parametrize("server", ["gunicorn", "uwsgi"])
@pytest.mark.parametrize(("method", "tries"), [("POST", 1), ("PATCH", 1), ("GET", 2)])
def test_only_an_idempotent_request_is_sent_to_another_server(
    nginx: Nginx, broken: list[BreaksConnections], server: str, method: str, tries: int
) -> None:
    port = nginx(server, *(each.path for each in broken))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, "/notes", b"{}" if method != "GET" else None)
        assert connection.getresponse().status == 502
    finally:
        connection.close()
    assert sum(each.seen for each in broken) == tries


@pytest.mark.slow
def test_recycled_gunicorn_workers_break_no_post_on_a_kept_connection(
    start: Callable[..., Child], run_directory: Path, nginx: Nginx, site: Path
) -> None:
    (site / "wsgi.py").write_text(ECHO_APPLICATION)
    path = run_directory / "server.sock"
    recycle = ("--max-requests", "20", "--max-requests-jitter", "20")
    gunicorn = start("gunicorn", "--config", "gunicorn.conf.py", "--bind", f"unix:{path}", *recycle)
    wait_until(path.is_socket, timeout=60, what="the server's socket")
    address = f"127.0.0.1:{nginx('gunicorn', path)}"
    answers: Counter[tuple[int, bool]] = Counter()

    def client(name: int) -> None:
        for number in range(150):
            body = json.dumps([name, number]).encode()
            status, _, answer = post(address, body)
            answers[status, answer == body] += 1

    clients = [threading.Thread(target=client, args=(name,)) for name in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert answers == {(200, True): 600}
    assert gunicorn.output().count("Autorestarting worker") >= 5
