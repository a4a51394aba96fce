"""What the three servers refuse: `temper label`, `temper serve` and `temper watch`, each started here on a free port.

    python check_security.py TEMPER

Requests of other sites, other annotators' tokens, paths outside, hostile texts, 100 MB bodies with and without a length, heads of 1 MiB,
more slow clients than connections, half a body, clients that never read. At the end nothing of it may be stored, what was
judged before must be there, and all servers must answer. Standard library alone, Linux; exits with 1 if anything is let in.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

HOSTILE = "</textarea><script>alert(1)</script><img src=x onerror=alert(1)>"
SECRET = "this text lies beside the servers' files"
LARGE = 100 * 1024 * 1024
JSON = "Content-Type: application/json\r\n"
OUTSIDE = [
    "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/..%5csecret.txt", "/sft/../../secret.txt",
    "/..%2f..%2f..%2fetc%2fpasswd/report.html", "/sft%2f..%2f..%2fsecret.txt/report.html", "/labels.db",
    "/v1/models/..%2f..%2fsecret.txt", "/run/recipe.ron", "/secret.txt", "/\x00secret.txt",
]
failures = 0


def expect(what, found, *wanted):
    global failures
    failures += found not in wanted
    print("ok  " if found in wanted else "BAD ", what, found, flush=True)


class Server:
    def __init__(self, temper, args, pattern, stream, count=1):
        self.process = subprocess.Popen([temper, *args, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.name, self.urls = args[0], []
        while len(self.urls) < count:
            line = getattr(self.process, stream).readline()
            if not line:
                sys.exit(f"temper {' '.join(args)}: {self.process.stderr.read()}")
            self.urls += re.findall(pattern, line)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.port = int(re.search(r":(\d+)", self.urls[0].split("//")[1]).group(1))

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(60)
        return connection

    def send(self, *parts):
        """The answer to bytes as they are, which is empty if the server closes the connection."""
        connection, answer = self.connect(), b""
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # The server has seen enough; it has answered before.
        try:
            while piece := connection.recv(1 << 16):
                answer += piece
        except OSError:
            pass
        connection.close()
        return answer

    def ask(self, method, path, lines="", body=None, host="localhost"):
        return self.send(request(method, path, lines, body, host))

    def status(self, *args, **named):
        return status(self.ask(*args, **named))

    def memory(self):
        """Resident memory in MiB."""
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text()).group(1)) // 1024


def request(method, path, lines="", body=None, host="localhost"):
    body = b"" if body is None else json.dumps(body).encode()
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def status(answer):
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def bearer(token):
    return f"Authorization: Bearer {token}\r\n"


def other_sites(server, path, lines, body):
    for line in ["Origin: http://evil.example", "Origin: null", "Origin: http://localhost:1", "Sec-Fetch-Site: cross-site"]:
        expect(f"{server.name} {path}, {line}:", server.status("POST", path, f"{lines}{JSON}{line}\r\n", body), 403)
    expect(f"{server.name} {path}, foreign Host:", server.status("POST", path, lines + JSON, body, host="evil.example"), 403)
    lines += "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n"
    expect(f"{server.name} {path}, a preflight allows:", b"access-control-allow" in server.ask("OPTIONS", path, lines).lower(), False)


def texts_and_paths(server):
    page = server.ask("GET", "/")
    expect(f"{server.name} page has a policy:", b"content-security-policy: default-src 'none'" in page, True)
    expect(f"{server.name} page has script of the data:", b"<script>alert" in page or b"<img src=x" in page, False)
    expect(f"{server.name} page, foreign Host:", server.status("GET", "/", host="evil.example"), 403)
    for path in OUTSIDE:
        answer = server.ask("GET", path)
        inside = SECRET.encode() in answer or b"root:" in answer
        expect(f"{server.name} {path!r}:", (status(answer), inside), (400, False), (404, False), (405, False))


def large(server, path, lines):
    before, piece = server.memory(), b"x" * (1 << 16)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}{JSON}"
    # A closed connection is an answer, too.
    answer = server.send(f"{head}Content-Length: {LARGE}\r\n\r\n".encode(), *[piece] * (LARGE // len(piece)))
    expect(f"{server.name} 100 MB with a length:", status(answer), 413, 0)
    chunk = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    answer = server.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *[chunk] * (LARGE // len(piece)), b"0\r\n\r\n")
    expect(f"{server.name} 100 MB in chunks:", status(answer), 413, 0)
    expect(f"{server.name} a head of 1 MiB:", status(server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n")), 431, 0)
    expect(f"{server.name} memory grows by more than 32 MiB ({server.memory() - before}):", server.memory() - before > 32, False)


def slow(server):
    clients, stop = [], threading.Event()
    for _ in range(300):
        client = server.connect()
        client.setblocking(False)
        client.send(b"POST / HTTP/1.1\r\nHost: loc")
        clients.append(client)

    def drip():
        while not stop.wait(1):
            for client in clients:
                try:
                    client.send(b"a")
                except OSError:
                    pass

    thread = threading.Thread(target=drip)
    thread.start()
    begin = time.perf_counter()
    expect(f"{server.name} behind 300 slow clients:", server.status("GET", "/"), 200)
    print(f"     after {time.perf_counter() - begin:.1f} s")
    stop.set()
    thread.join()
    for client in clients:
        client.close()
    half = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{"
    expect(f"{server.name} half a body:", status(server.send(half.encode())), 408)


def main():
    temper = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rows = [{"prompt": f"{HOSTILE} {i}", "responses": [HOSTILE, f"b{i}"], "policies": ["x", "y"]} for i in range(6)]
        pathlib.Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pathlib.Path("secret.txt").write_text(SECRET)
        stage = pathlib.Path("run/sft")
        stage.mkdir(parents=True)
        recipe = '(name: "w", model: "tiny", stages: [Sft(name: "sft", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4)])'
        pathlib.Path("run/recipe.ron").write_text(recipe)
        (stage / "stage.json").write_text(json.dumps({"summary": HOSTILE, "total_steps": 9}))
        (stage / "metrics.jsonl").write_text('{"step": 1, "loss": 1.5}\n')
        (stage / "timing.jsonl").write_text('{"step": 1, "elapsed_s": 2.0}\n')
        label = Server(temper, ["label", "--data", "rows.jsonl", "--store", "labels.db", "--annotators", "ann,bob"], r"http\S+", "stdout", 2)
        serve = Server(temper, ["serve", "--model", "tiny", "--preferences", "thumbs.jsonl"], r"listening on (\S+)", "stderr")
        watch = Server(temper, ["watch", "run"], r"http\S+", "stdout")
        try:
            attack(label, serve, watch)
            report = lambda: json.loads(subprocess.run(
                [temper, "label", "--store", "labels.db", "--report", "--json"], check=True, capture_output=True).stdout)
            expect("judgements, of which one was ann's:", report()["judgements"], 1)
            expect("bytes of preferences:", os.path.getsize("thumbs.jsonl"), 0)
            for server in [label, serve, watch]:
                expect(f"{server.name} answers:", server.status("GET", "/"), 200)
        finally:
            for server in [label, serve, watch]:
                server.process.kill()
                server.process.wait()
    sys.exit(1 if failures else 0)


def attack(label, serve, watch):
    ann, bob = (bearer(url.split("#")[1]) for url in label.urls)

    def take():
        return json.loads(label.ask("POST", "/api/next", ann + JSON, {}).split(b"\r\n\r\n", 1)[1])["task"]["nonce"]

    answer = lambda nonce: {"nonce": nonce, "answer": {"grade": 1}, "seconds": 1}
    expect("label, ann judges:", label.status("POST", "/api/judge", ann + JSON, answer(take())), 200)
    held = answer(take())
    for who, lines, wanted in [("nobody", "", 401), ("a guess", bearer("0" * 32), 401), ("another annotator", bob, 409)]:
        expect(f"label, {who} judges ann's task:", label.status("POST", "/api/judge", lines + JSON, held), wanted)
        expect(f"label, {who} takes ann's answer back:", label.status("POST", "/api/undo", lines + JSON, {}), wanted)
    completion = {"model": "tiny", "prompt": "a", "max_tokens": 2}
    other_sites(label, "/api/judge", ann, held)
    other_sites(serve, "/v1/completions", "", completion)
    other_sites(serve, "/preferences", "", {"prompt": "a", "chosen": "b", "rejected": "c"})
    for server, path, lines in [(label, "/api/judge", ann), (serve, "/v1/completions", ""), (watch, "/", "")]:
        texts_and_paths(server)
        large(server, path, lines)
        slow(server)
    expect("serve, a model by its path:", serve.status("POST", "/v1/completions", JSON, {**completion, "model": "../secret.txt"}), 404)
    deaf = []
    for _ in range(8):
        client = serve.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.sendall(request("POST", "/v1/completions", JSON, {**completion, "max_tokens": 150, "stream": True, "logprobs": 5, "ignore_eos": True}))
        deaf.append(client)
    expect("serve beside 8 clients that never read:", serve.status("POST", "/v1/completions", JSON, completion), 200)
    for client in deaf:
        client.close()


if __name__ == "__main__":
    main()
