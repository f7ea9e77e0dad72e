"""A double of the original IAM Credentials API's node proxy (localhost_proxy.py): its options, what it forwards, what it caches,
and how it reads Expiration. It writes a word for each answer: asked, or cached."""

import argparse
import datetime
import http.client
import http.server
import json
import ssl

options = argparse.ArgumentParser()
options.add_argument("--hostname", required=True)
options.add_argument("--port", type=int, default=9999)
options.add_argument("--cache_mode", default="store")
options.add_argument("--max_queue_size", type=int, default=1000000)
options = options.parse_args()
cache = {}


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        key = (self.headers["Authorization"], self.path)
        until, answer = cache.get(key, (None, None))
        # Local time, as the original has it.
        if options.cache_mode == "store" and until and datetime.datetime.now() < until:
            print("cached", flush=True)
        else:
            unverified = ssl._create_unverified_context()
            upstream = http.client.HTTPSConnection(options.hostname, context=unverified, timeout=60)
            upstream.request("GET", self.path, headers=dict(self.headers) | {"Host": options.hostname})
            response = upstream.getresponse()
            answer = (response.status, response.headers["Content-Type"], response.read())
            print("asked", flush=True)
        status, content_type, body = answer
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # After the headers, as there: where this fails the client gets no body.
        if status == 200 and options.cache_mode == "store":
            cache[key] = (datetime.datetime.fromisoformat(json.loads(body)["Expiration"][:-6]), answer)
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Proxy).serve_forever()
