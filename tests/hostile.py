"""A model server on the loopback that speaks all three wires and misbehaves on request. Standard library
only.

    python tests/hostile.py    # how near a judge comes to its concurrency bound, and its memory
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = """hang lost 408 409 429 429-after 429-date 500 503 half truncated bytes list shape prose missing
extra twice order empty echo cut refusal verdictless""".split()
"""What a server can do instead of answering."""

OF_DECISIONS = ("shape", "missing", "extra", "empty", "verdictless")
"""Those of them that each wire reads in its own way, a model that does not write included."""

SERVERS = ("chat:m", "systemone:m", "decisions:m")
"""A judge on each wire."""


def truth(text: str) -> bool:
    """What the honest server says to a closed question: yes to about half of all."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def questions(user: str) -> list[str]:
    """The closed questions in a chat prompt, without their numbers."""
    block = user[user.index("--- questions ") : user.index("--- end of questions ")]
    return re.findall(r"^\d+\. (.*)$", block, re.M)


def verdicts(words: list[bool]) -> dict[str, Any]:
    return {str(i): {"reason": "r", "verdict": "yes" if w else "no"} for i, w in enumerate(words, 1)}


def says(word: str) -> Callable[[str, dict], str]:
    """A chat model with one verdict for everything."""

    def reply(path: str, body: dict) -> str:
        asked = body["messages"][-1]["content"]
        n = len(re.findall(r"^\d+\. ", asked, re.M))
        entry = {"reason": "r", "verdict": word}
        return json.dumps({str(i): entry for i in range(1, n + 1)} if n else {"reason": "r", "rating": 4})

    return reply


def honest(path: str, body: dict) -> Any:
    """The content of an honest answer: a chat model's text, or the answers of a decision server."""
    if path.endswith("/chat/completions"):
        user = body["messages"][-1]["content"]
        if "--- questions " not in user:
            return json.dumps({"reason": "r", "rating": 4})
        return json.dumps(verdicts([truth(shared(user) + q) for q in questions(user)]))
    if path.endswith("/systemone"):
        asked = body["questions"].items()
        return {name: _answer(q, truth(shared(body["state"]) + q["instructions"])) for name, q in asked}
    found = body["questions"]
    return [
        {"name": q["name"]} | _decision(q, truth(shared(body["input"]) + q["instructions"])) for q in found
    ]


def shared(text: str) -> str:
    """The response that a prompt shows, which makes truth depend on it."""
    return re.search(r"--- response \w+\n(.*)\n--- end of response", text, re.S)[1]


def _answer(question: dict, yes: bool) -> dict:
    if question["type"] == "score":
        return {"type": "score", "score": 3.0, "probabilities": {}}
    return {"type": "noul", "noul": 0.9 if yes else 0.2}


def _decision(question: dict, yes: bool) -> dict:
    if question["type"] == "score":
        shares = [{"label": str(i), "value": i, "probability": float(i == 4)} for i in range(1, 11)]
        return {"type": "score", "score": 4.0, "confidence": 1.0, "probabilities": shares}
    return {"type": "predicate", "probability": 0.9 if yes else 0.2}


def user(body: dict) -> str:
    """What a server was asked, on any wire."""
    if "messages" in body:
        return body["messages"][-1]["content"]
    asked = body["questions"]
    asked = list(asked.values()) if isinstance(asked, dict) else asked
    return (body.get("state") or body["input"]) + "\n".join(q["instructions"] for q in asked)


class Server:
    """Answers honestly, or with the fault that `fault(path, body, number)` names for a request.

    `seen` holds every request in order of arrival: (path, body, headers). `most` is how many were under way
    at once.
    """

    def __init__(self, latency: float = 0.0, hang: float = 30.0, reply: Callable | None = None) -> None:
        self.latency, self.hang, self.reply = latency, hang, reply
        self.fault: Callable[[str, dict, int], str | int | None] = lambda path, body, number: None
        self.seen: list[tuple[str, dict, dict]] = []
        self.times: list[float] = []
        self.served: Counter = Counter()
        self.under_way = self.most = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else headers and body, two writes, lie 40 ms apart

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.seen)
                    server.seen.append((self.path, body, dict(self.headers)))
                    server.times.append(time.monotonic())
                    server.under_way += 1
                    server.most = max(server.most, server.under_way)
                try:
                    server.respond(self, body, number)
                except OSError:
                    pass  # the client has gone
                finally:
                    with server._lock:
                        server.under_way -= 1

            def log_message(self, *_: object) -> None:
                pass

        class Http(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=[0.02], daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def respond(self, handler: BaseHTTPRequestHandler, body: dict, number: int) -> None:
        fault = self.fault(handler.path, body, number)
        self.served[fault] += 1
        time.sleep(self.hang if fault == "hang" else self.latency)
        if fault in ("hang", "lost"):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        content = self.reply(handler.path, body) if self.reply else honest(handler.path, body)
        status, headers, sent = self.spoil(fault, handler.path, body, content)
        handler.send_response(status)
        length = len(sent) + (100 if fault == "half" else 0)
        for name, value in {"Content-Type": "application/json", "Content-Length": length, **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(sent)
        if fault == "half":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)

    def spoil(self, fault: Any, path: str, body: dict, content: Any) -> tuple[int, dict, bytes]:
        """Status, headers and bytes of a reply, honest or not."""
        if fault is not None and str(fault)[:3].isdigit():
            code, _, kind = str(fault).partition("-")
            headers = {"after": {"Retry-After": "0.4"}, "date": {"Retry-After": _date(1)}}.get(kind, {})
            # As some servers do, the error repeats what it should not.
            return int(code), headers, _bytes({"error": {"message": "no: Bearer sk-very-secret"}})
        whole = envelope(path, content)
        if path.endswith("/chat/completions"):
            whole = self.spoil_chat(fault, body, content, whole)
        elif fault in OF_DECISIONS:
            whole["answers"] = spoil_answers(fault, whole["answers"])
        sent = _bytes([whole] if fault == "list" else whole)
        if fault in ("half", "truncated"):
            sent = sent[: len(sent) // 2]
        return 200, {}, sent + b"\xff\xfe" if fault == "bytes" else sent

    def spoil_chat(self, fault: Any, body: dict, content: str, whole: dict) -> dict:
        if fault is None:
            return whole
        choice = whole["choices"][0]
        found = json.loads(content) if content.startswith("{") else {}
        lie = {name: {"reason": "r", "verdict": "yes"} for name in found}
        texts = {
            "prose": f"Here is my judgement:\n```json\n{json.dumps(lie)}\n```\nI hope this helps.",
            "missing": json.dumps(dict(list(lie.items())[1:])),
            "extra": json.dumps(lie | {str(len(lie) + 1): {"reason": "r", "verdict": "yes"}}),
            "twice": content[:-1] + ", " + json.dumps(lie)[1:],
            "order": json.dumps({name: {"verdict": "yes", "reason": "r"} for name in found}),
            "empty": "",
            "echo": f"The response says: {json.dumps(lie)}",
            "verdictless": json.dumps({name: {"reason": "r", "verdict": "perhaps"} for name in found}),
        }
        choice["message"]["content"] = texts.get(fault, content)
        if fault == "cut":
            choice["finish_reason"] = "length"
            choice["message"]["content"] = json.dumps(lie)
        if fault == "refusal":
            choice["message"] = {"role": "assistant", "content": json.dumps(lie), "refusal": "I will not."}
        return {"choices": {"0": choice}} if fault == "shape" else whole


def envelope(path: str, content: Any) -> dict:
    """The honest JSON around an answer."""
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 1000, "completion_tokens": 10}
        usage |= {"total_tokens": 1010, "prompt_tokens_details": {"cached_tokens": 600}}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    return {"model": "m", "answers": content, "usage": {"input_tokens": 1000, "output_tokens": 0}}


def spoil_answers(fault: str, answers: Any) -> Any:
    """Decision answers with something wrong; each value left in them is a lie."""
    if fault == "shape":
        return "yes"
    if isinstance(answers, dict):
        lie = {name: answer | {"noul": 1.5} for name, answer in answers.items()}
        first = next(iter(lie))
        changed = {"missing": {k: v for k, v in lie.items() if k != first}, "empty": {}}
        changed |= {"extra": lie | {"x": lie[first]}, "verdictless": lie}
        return changed[fault]
    lie = [answer | {"probability": float("nan")} for answer in answers]
    return {"missing": lie[1:], "empty": [], "extra": [*lie, lie[0]], "verdictless": lie}[fault]


def sometimes(share: float, faults: list[str] = FAULTS, seed: int = 0) -> Callable[..., str | None]:
    """A fault for so large a share of the requests, after the first: a server that is down is another
    test."""
    draw = random.Random(seed)

    def fault(path: str, body: dict, number: int) -> str | None:
        return draw.choice(faults) if draw.random() < share and number else None

    return fault


def _bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def _date(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + seconds))


def serve(pipe: Any, latency: float, share: float) -> None:
    """A server in a process of its own, until the pipe says how it ends."""
    server = Server(latency, hang=30.0)
    server.fault = sometimes(share)
    pipe.send(server.url)
    pipe.recv()
    pipe.send(dict(server.served))


def measure(
    share: float, latency: float, concurrency: int, questions: int = 1000, timeout: float = 2.0
) -> dict:
    """Throughput and memory of a judge that asks so many questions of a server with so large a share of
    faults."""
    from rar_mini import prompts
    from rar_mini.judging import wires
    from rar_mini.judging.endpoint import Endpoint, Failure

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, latency, share))
    process.start()
    made = Endpoint("m", base_url=here.recv(), concurrency=concurrency, timeout=timeout)
    texts = prompts.JudgePrompts()

    def ask(turn: int) -> list:
        shared = "--- response ab\n{}\n--- end of response ab\n" + "words " * 500
        asked = (wires.Worded(shared.format((turn, i)), "ab", ["Is it so?"], False) for i in range(questions))
        return made.ask(wires.request("chat", "m", each, texts, 512) for each in asked)

    start = time.perf_counter()
    answers = ask(0)
    wall = time.perf_counter() - start
    calls = made.ledger.counts["calls"]
    memory = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    for turn in (1, 2):
        ask(turn)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    here.send("end")
    hung = here.recv().get("hang", 0) / 3  # of three turns
    process.join()
    made.close()
    bound = ((calls - hung) * latency + hung * timeout) / concurrency
    return {
        "faults": share,
        "latency_s": latency,
        "concurrency": concurrency,
        "questions": questions,
        "requests": calls,
        "failed": sum(isinstance(answer, Failure) for answer in answers),
        "wall_s": round(wall, 2),
        "of_bound": round(bound / wall, 3),
        "peak_mb": [round(m) for m in memory],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {sys.version.split()[0]}")
    print("faults  latency  concurrency  requests  failed   wall  of the bound  peak MB after 1, 2, 3 turns")
    rows = [measure(share, 1.0, 32) for share in (0.0, 0.3)]
    for r in rows:
        print(
            f"{r['faults']:>6.0%} {r['latency_s']:>6.1f} s {r['concurrency']:>12} {r['requests']:>9} "
            f"{r['failed']:>7} {r['wall_s']:>4.1f} s {r['of_bound']:>13.0%}  {r['peak_mb']}"
        )
    print(json.dumps(rows))
