"""What people see: the page at `/`, and the reference of the API at `/docs`. They use the public API only."""

from importlib import resources

from flask import Blueprint, Response, make_response, render_template

from app.models.tiny_scenes.grammar import example_prompts
from app.storage import Storage

EXAMPLES = 12


def pages(storage: Storage) -> Blueprint:
    """`/`, `/docs` and what they load, each with the Content-Security-Policy that lets it do just what it does."""
    blueprint = Blueprint(
        "page",
        __name__,
        static_folder="page/static",
        static_url_path="/page",
        template_folder="page/templates",
    )

    @blueprint.get("/")
    def home() -> Response:
        origin = storage.origin
        page = render_template("home.html", storage=origin, examples=example_prompts(EXAMPLES, seed=1))
        return _guarded(page, style="'self'", img=f"'self' blob: data: {origin}", connect=f"'self' {origin}")

    @blueprint.get("/docs")
    def docs() -> Response:
        # Swagger UI writes styles into its elements.
        return _guarded(render_template("docs.html"), style="'self' 'unsafe-inline'", img="'self' data:")

    blueprint.register_blueprint(_swagger())
    return blueprint


def _swagger() -> Blueprint:
    folder = resources.files("flask_openapi3_swagger") / "templates" / "swagger"
    return Blueprint("swagger", __name__, static_folder=str(folder), static_url_path="/docs/static")


def _guarded(page: str, *, style: str, img: str, connect: str = "'self'") -> Response:
    """The page, which may load and do only what is named here."""
    response = make_response(page)
    sources = {"default-src": "'none'", "script-src": "'self'", "style-src": style, "img-src": img}
    bounds = {"connect-src": connect, "form-action": "'self'", "frame-ancestors": "'none'", "base-uri": "'none'"}
    policy = "; ".join(f"{name} {value.strip()}" for name, value in (sources | bounds).items())
    response.headers["Content-Security-Policy"] = policy
    # A signed URL in the address bar's history is nobody else's business.
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    return response
