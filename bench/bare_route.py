"""The least that Flask can do with a submit: read its JSON, answer 202 and so many bytes."""

from flask import Flask, Response, request


def make(size: int) -> Flask:
    """What gunicorn calls: `gunicorn 'bench.bare_route:make(1200)'`."""
    app, body = Flask("bare"), b"." * size

    @app.post("/generate")
    def generate() -> Response:
        """Parse, and answer."""
        request.get_json()
        return Response(body, 202, mimetype="application/json")

    return app
