"""serve: what clients get, and what clients cannot do to it. A real server on loopback, in a process of its own."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import FEATCACHE, Run

import featcache as fc
from featcache.core.errors import UsageError
from featcache.core.progress import SILENT
from featcache.synthetic.drawing import write_cells

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'featcache[serve]'")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: pip install 'featcache[export]'")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

_WAIT_S = 60


class Service:
    """A service that listens."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_WAIT_S)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def predict(self, data: bytes, query: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask("POST", f"/predict{query}", data, headers)
        return status, json.loads(body)

    @property
    def memory_bytes(self) -> int:
        """Resident."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[Service]:
    command = [FEATCACHE, "serve", str(bundle), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())["address"]
            yield Service(process, int(address.rpartition(":")[2]))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_WAIT_S)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    folder = tmp_path_factory.mktemp("serve")
    write_cells(folder / "cells", 8, seed=2, size_px=64)
    return fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)


@pytest.fixture(scope="module")
def bundle(project: fc.Project) -> Path:
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    run = fc.fit_head(cache, epochs=3, hidden=(8,), solver="gram", progress=SILENT)
    return Path(run.bundle(out=project.folder / "cells.zip", progress=SILENT).path)


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[Service]:
    with served(bundle, "--confidence", "0.5", "--max-mb", "1", "--read-s", "2", "--waiting", "8") as found:
        yield found


@pytest.fixture(scope="module")
def files(project: fc.Project) -> list[Path]:
    return sorted(project.images_folder.rglob("*.png"))


def test_an_answer_is_that_of_predict(service: Service, bundle: Path, files: list[Path]) -> None:
    expected = fc.predict(bundle, files[:3], confidence=0.5, progress=SILENT).to_dict()
    for file, row in zip(files[:3], expected["rows"], strict=True):
        status, answer = service.predict(file.read_bytes())
        assert status == 200
        assert answer.pop("run") == expected["run"]
        found, wanted = answer.pop("probabilities"), row.pop("probabilities")
        assert found == pytest.approx(wanted, abs=1e-5)
        assert answer["confidence"] == pytest.approx(row["confidence"], abs=1e-4)
        assert [answer[name] for name in ("class", "set", "unlike")] == [
            row[name] for name in ("class", "set", "unlike")
        ]


def test_a_form_and_a_heatmap(service: Service, files: list[Path]) -> None:
    data = files[0].read_bytes()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cell.png"\r\n\r\n' + data + b"\r\n--x--\r\n"
    form = {"content-type": "multipart/form-data; boundary=x"}
    status, _, answer = service.ask("POST", "/predict?heatmap=1", body, form)
    value = json.loads(answer)
    assert (status, value["path"], value["heatmap_exact"]) == (200, "cell.png", True)
    png = base64.b64decode(value["heatmap"].removeprefix("data:image/png;base64,"))
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (448, 896, 3)
    assert service.ask("POST", "/predict", b"--y", form)[0] == 400
    empty = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    assert service.ask("POST", "/predict", empty, form)[0] == 400


def test_the_page_and_what_it_is_made_of(service: Service) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, body = service.ask("GET", path)
        assert status == 200 and headers["content-type"].startswith(kind) and len(body) > 500
        assert "default-src 'none'" in headers["content-security-policy"]


DROP = """
const held = new DataTransfer();
for (const [name, text] of files) {
  held.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name));
}
for (const kind of ["dragenter", "dragover", "drop"]) {
  document.getElementById("drop").dispatchEvent(new DragEvent(kind, {dataTransfer: held, bubbles: true}));
}
"""


@pytest.mark.parametrize("width_px", [1280, 390], ids=["desktop", "phone"])
def test_images_are_dropped_on_the_page(service: Service, files: list[Path], tmp_path: Path, width_px: int) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine to open the page with")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "broken.jpg").write_text("no image")
    dropped = [
        (path.name, base64.b64encode(path.read_bytes()).decode()) for path in (files[0], tmp_path / "broken.jpg")
    ]
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width_px, "height": 800})
        failed: list[str] = []
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(f"http://127.0.0.1:{service.port}/")
        sync_api.expect(page.locator("#about")).to_contain_text("neutrophil")
        page.evaluate(f"(files) => {{{DROP}}}", dropped)
        good, bad = page.locator("article").first, page.locator("article").last
        sync_api.expect(bad.locator(".error")).to_have_text("the file is no image that can be read", timeout=30_000)
        sync_api.expect(good.locator("h2")).to_have_text(files[0].name)
        _, answer = service.predict(files[0].read_bytes())
        assert good.locator(".class").text_content() == answer["class"]
        assert good.locator(".sure").text_content() == f"Confidence {100 * answer['confidence']:.1f} %"
        assert good.locator("tr").count() == 4
        assert good.locator("img").evaluate("(image) => image.naturalWidth") == 896  # the image, and its heatmap
        assert not bad.locator("img").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width_px
        page.set_input_files("#file", str(files[1]))
        sync_api.expect(page.locator("article").first.locator("h2")).to_have_text(files[1].name, timeout=30_000)
        sync_api.expect(page.locator("p.class:not(:empty)")).to_have_count(2, timeout=30_000)
        browser.close()
    assert not failed


def test_health_and_metrics(service: Service, files: list[Path]) -> None:
    value = json.loads(service.ask("GET", "/health")[2])
    assert value["status"] == "ok" and len(value["classes"]) == 4

    def answered() -> float:
        found = re.search(
            r'^featcache_requests_total\{status="200"\} (\S+)', service.ask("GET", "/metrics")[2].decode(), re.M
        )
        return float(found[1]) if found else 0.0

    before = answered()
    service.predict(files[0].read_bytes())
    assert answered() == before + 1


def wide(px: int) -> bytes:
    _, data = cv2.imencode(".png", np.full((4, px, 3), 200, np.uint8))
    return data.tobytes()


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "holds no image"),
        (b"text", 400, "no image that can be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), 400, ""),
        (bytes(1_100_000), 413, "at most 1 MB"),
    ],
)
def test_what_is_no_image_gets_one_clear_answer(service: Service, data: bytes, status: int, words: str) -> None:
    found, answer = service.predict(data)
    assert (found, set(answer)) == (status, {"error"})
    assert words in answer["error"]
    assert str(Path.cwd()) not in answer["error"] and "Traceback" not in answer["error"]


def test_a_picture_of_something_else_and_a_wide_one(service: Service) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    _, data = cv2.imencode(".png", noise)
    assert service.predict(data.tobytes())[0] == 200
    assert service.predict(wide(10_000))[0] == 200


def test_an_upload_of_a_gigabyte_is_refused_at_its_beginning(service: Service) -> None:
    for header in (b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=_WAIT_S) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + header)
            sent = 0
            try:
                while sent < 50 << 20:
                    chunk = bytes(1 << 16)
                    client.sendall(chunk if b"Length" in header else b"10000\r\n" + chunk + b"\r\n")
                    sent += len(chunk)
            except OSError:
                pass  # the server has closed
            assert sent < 50 << 20
            answer = b""
            try:
                answer = client.recv(200)
            except OSError:
                continue
            assert b"413" in answer or not answer


def test_a_slow_client_is_told(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=_WAIT_S) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nslow")
        assert b"408" in client.recv(500)


def test_a_storm_is_answered_and_leaves_no_memory_behind(service: Service, files: list[Path]) -> None:
    data = [file.read_bytes() for file in files]

    def ask(number: int) -> int:
        return service.predict(data[number % len(data)])[0]

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(200)))
        before = service.memory_bytes
        statuses = list(pool.map(ask, range(1000)))
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 100
    assert service.memory_bytes - before < 60 << 20
    assert service.predict(data[0])[0] == 200


def test_clients_that_go_away_do_no_harm(service: Service, files: list[Path]) -> None:
    data = files[0].read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    for part in (data[:100], data):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", service.port), timeout=_WAIT_S) as client:
                client.sendall(head + part)
    time.sleep(0.2)
    assert service.predict(data)[0] == 200


def test_another_name_for_this_machine_is_refused(service: Service) -> None:
    assert service.ask("GET", "/health", headers={"Host": "evil.example"})[0] == 400
    assert service.ask("GET", "/health", headers={"Host": "localhost"})[0] == 200
    assert service.ask("GET", "/../../etc/passwd")[0] == 404
    assert service.ask("GET", "/predict")[0] == 405


def test_it_ends_when_it_is_told_to(bundle: Path, files: list[Path]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with served(bundle) as service:
            assert service.predict(files[0].read_bytes())[0] == 200
            service.process.send_signal(number)
            service.process.wait(20)
        assert service.process.returncode in (0, -number, 128 + number, 130)


def test_a_port_that_is_taken_and_a_bundle_that_is_none(
    service: Service, bundle: Path, tmp_path: Path, run: Run
) -> None:
    taken = run("serve", str(bundle), "--port", str(service.port), cwd=tmp_path)
    assert (taken.code, "cannot listen there" in taken.err) == (1, True)
    (tmp_path / "no.zip").write_bytes(b"PK")
    broken = run("serve", str(tmp_path / "no.zip"), cwd=tmp_path)
    assert (broken.code, "cannot be read" in broken.err) == (1, True)
    with pytest.raises(UsageError, match="expected numbers above 0"):
        fc.serve(bundle, waiting=0, progress=SILENT)
