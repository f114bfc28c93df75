"""A collector of traces of this process, which reads what it is sent by OpenTelemetry's own schema."""

import base64
import http.server
import json
import threading
import time

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_IDS = ("traceId", "spanId", "parentSpanId")


def read(body):
    """A request's spans, and their resource's attributes; ParseError if it is not of the schema, to the letter."""
    told = json.loads(body)
    for of_resource in told["resourceSpans"]:
        for of_scope in of_resource["scopeSpans"]:
            for span in of_scope["spans"]:  # ids are hexadecimal in OTLP's JSON, and base64 in protobuf's
                span |= {each: base64.b64encode(bytes.fromhex(span[each])).decode() for each in _IDS if each in span}
    parsed = json_format.Parse(json.dumps(told), ExportTraceServiceRequest())
    (of_resource,) = parsed.resource_spans
    resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
    return [span for of_scope in of_resource.scope_spans for span in of_scope.spans], resource


class Collector:
    """`spans` are those that came, `resources` whose they are, `headers` and `paths` of the requests."""

    def __init__(self, *statuses):
        """It answers with these, one after another, and then with 200."""
        self.spans, self.resources, self.headers, self.paths = [], [], [], []
        left = list(statuses)

        class Take(http.server.BaseHTTPRequestHandler):
            def do_POST(taken):
                body = taken.rfile.read(int(taken.headers["Content-Length"]))
                status = left.pop(0) if left else 200
                self.headers.append(dict(taken.headers))
                self.paths.append(taken.path)
                if status == 200:
                    spans, resource = read(body)
                    self.spans += spans
                    self.resources.append(resource)
                taken.send_response(status)
                taken.send_header("Content-Length", "2")
                taken.end_headers()
                taken.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *told):
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, is_there, seconds=60):
        """The spans, once they are as wanted."""
        deadline = time.monotonic() + seconds
        while not is_there(self.spans):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.02)
        return self.spans


def by_trace(spans):
    """{trace's id: {span's name: span}}; what is told of an event twice, as of one that came twice, has one id."""
    traces = {}
    for span in spans:
        names = traces.setdefault(span.trace_id.hex(), {})
        assert names.setdefault(span.name, span).span_id == span.span_id
    return traces


def attributes(span):
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
