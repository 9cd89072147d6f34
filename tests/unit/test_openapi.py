"""The OpenAPI document and its page: valid, whole, and true of what is answered."""

import re

from jsonschema_rs import validator_for
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from app import __version__
from app.web import create_app
from tests.answers import finished, queued

UNDOCUMENTED = {
    "/openapi.json", "/", "/page/{filename}", "/docs", "/docs/static/{filename}", "/files/{token}/{name}",
}  # fmt: skip


def test_the_openapi_document_is_valid(client):
    document = client.get("/openapi.json").json
    OPENAPI_31_VALIDATOR.validate(document)
    assert document["info"]["version"] == __version__


def test_the_openapi_document_names_every_route_and_method(services):
    app = create_app(services)
    document = app.test_client().get("/openapi.json").json
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert {(path, method) for path, method in routes if path not in UNDOCUMENTED} == described
    assert {path for path, _ in routes} >= UNDOCUMENTED


def test_the_openapi_document_names_the_headers_that_are_heard(client):
    paths = client.get("/openapi.json").json["paths"]
    heard = {
        (path, parameter["name"])
        for path, item in paths.items()
        for operation in item.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header"
    }
    assert heard == {
        ("/generate", "Idempotency-Key"),
        ("/tasks/{task_id}/rerun", "Idempotency-Key"),
        ("/tasks/{task_id}/events", "Last-Event-ID"),
        ("/tasks/{task_id}", "If-None-Match"),
    }
    assert list(paths["/tasks/{task_id}/events"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {"401", "429"} & set(paths["/readyz"]["get"]["responses"]) == set()


def test_the_openapi_document_names_the_headers_of_an_answer(client, services):
    paths = client.get("/openapi.json").json["paths"]

    def named(path, method, status):
        return set(paths[path][method]["responses"][str(status)]["headers"])

    told = client.post("/generate", json={"prompt": "x"}, headers={"Idempotency-Key": "k"})
    again = client.post("/generate", json={"prompt": "x"}, headers={"Idempotency-Key": "k"})
    assert {"Location", "Retry-After"} <= set(told.headers.keys())
    assert named("/generate", "post", 202) == {"Location", "Retry-After", "Idempotency-Replayed"}
    assert named("/generate", "post", 202) <= set(again.headers.keys())
    assert named("/tasks/{task_id}", "get", 200) >= {"ETag", "Retry-After"}
    assert named("/tasks/{task_id}/rerun", "post", 202) >= {"Location", "Retry-After", "Idempotency-Replayed"}
    assert "ETag" in client.get(f"/tasks/{finished(services)}").headers
    assert "Retry-After" in client.get(told.headers["Location"]).headers


def test_a_task_document_is_as_the_openapi_document_says(client, services):
    document = client.get("/openapi.json").json
    schema = {"$ref": "#/components/schemas/Task", "components": document["components"]}
    for task_id in (queued(services), queued(services, waits=True), finished(services)):
        validator_for(schema).validate(client.get(f"/tasks/{task_id}").json)


def test_the_page_of_the_api_loads_nothing_from_elsewhere(client):
    sources = re.findall(r'(?:src|href)="([^"]+)"', client.get("/docs").text)
    assert len(sources) == 4
    for source in sources:
        assert source.startswith("/")
        assert client.get(source, buffered=True).status_code == 200
