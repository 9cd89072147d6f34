"""What stands at the other end: a collector of spans, a channel of Discord, a receiver of webhooks."""

import contextlib
import gzip
import http.server
import json
import threading

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Sink:
    """An HTTP server on loopback that keeps every body it is sent, with its path and its headers."""

    def __init__(self):
        self.got = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.got.append((self.path, dict(self.headers), body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class Collector(Sink):
    """Takes spans as OTLP over HTTP, as the real collector does."""

    @property
    def spans(self):
        """Every span, as a flat dictionary."""
        return [
            Span(resource.resource, span)
            for path, _, body in list(self.got)
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def trace(self, trace_id):
        return [span for span in self.spans if span.trace_id == trace_id]


class Span:
    """One span: its name, its kind, the service that made it, and its place in the tree."""

    def __init__(self, resource, span):
        self.name, self.kind = span.name, span.kind
        self.trace_id, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        # Seconds since 1970.
        self.begun, self.ended = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
        self.service = next(a.value.string_value for a in resource.attributes if a.key == "service.name")
        self.attributes = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
        self.text = str(span)

    def __repr__(self):
        return f"{self.service}: {self.name}"


class Discord(Sink):
    """A channel: what it is told, as `{title, description}`, in its order."""

    @property
    def messages(self):
        return [embed for _, _, body in list(self.got) for embed in json.loads(body)["embeds"]]
