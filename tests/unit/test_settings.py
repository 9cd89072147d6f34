"""Settings: one table, all mistakes told at once, and no secret told ever."""

import pytest

from app import settings
from app.errors import SettingsError
from app.services import make_redis

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def environ(monkeypatch):
    """Sets settings in the environment; what is not named has its default."""

    def put(**values):
        for name, value in {"SIGNING_KEY": KEY, **values}.items():
            monkeypatch.setenv(name, value)

    return put


def mistakes():
    with pytest.raises(SettingsError) as refused:
        settings.load()
    return str(refused.value).splitlines()


def test_the_environment_is_read_and_the_rest_has_its_default(environ):
    environ(REDIS_URL="rediss://user:pw@redis.example:6380/3", LEASE="2.5", WEB_BIND="0.0.0.0:80")
    loaded = settings.load()
    assert (loaded.redis_url, loaded.lease) == ("rediss://user:pw@redis.example:6380/3", 2.5)
    assert (loaded.max_attempts, loaded.base_url) == (3, "http://0.0.0.0:80")


def test_an_empty_setting_is_one_that_is_not_set(environ):
    environ(LEASE="", REDIS_URL="")
    assert (settings.load().lease, settings.load().redis_url) == (15, "redis://127.0.0.1:6379/0")


def test_all_mistakes_are_told_together(environ):
    environ(BROKER_URL="kafka://x", LEASE="0", MAX_ATTEMPTS="many", LOG_FORMAT="xml", SIGNING_KEY="short")
    names = [line.partition(":")[0] for line in mistakes()]
    assert sorted(names) == ["BROKER_URL", "LEASE", "LOG_FORMAT", "MAX_ATTEMPTS", "SIGNING_KEY"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("BROKER_URL", "http://x"), ("BROKER_URL", "rabbit"), ("REDIS_URL", "amqp://x"), ("REDIS_URL", "redis:x"),
     ("REDIS_URL", "redis://host:port/0"), ("STORAGE_URL", "s3://bucket"), ("STORAGE_URL", "/var/lib"),
     ("STORAGE_URL", "gs:///prefix"), ("STORAGE_URL", "file://relative/folder"), ("STORAGE_URL", "gs:bucket"),
     ("STORAGE_URL", "file:///work#1/storage"), ("STORAGE_URL", "file:///what?/storage"), ("STORAGE_URL", "gs://b/p#1"),
     ("WEB_BIND", "8000"), ("WEB_BIND", "localhost"), ("WEB_BIND", ":8000"),
     ("PUBLIC_URL", "darkroom.example"), ("PUBLIC_URL", "https://"),
     ("PUBLIC_URL", "javascript:alert(1)"), ("PUBLIC_URL", "http://x:99999"), ("PUBLIC_URL", "http://a b"),
     ("PUBLIC_URL", "https://x/?q"), ("REDIS_URL", "redis://host:6379/abc"), ("METRICS_BIND", ":99999"),
     ("WEB_BIND", "127.0.0.1:٨٠٨٠"),
     ("RESULT_TTL", "1000000000000"), ("SWEEP_INTERVAL", "0.0001"), ("SWEEP_INTERVAL", "inf"), ("LEASE", "inf"),
     ("LEASE", "0.001"), ("WEBHOOK_PAUSE", "inf"), ("UNCONFIRMED_AFTER", "inf"), ("TIME_LIMIT", "999999999999"),
     ("WORKER_GRACE", "100000000000000"), ("TORCH_THREADS", "1000000000"), ("TRUSTED_PROXIES", "1000000000"),
     ("MODEL_PATIENCE", "nan")],
)  # fmt: skip
def test_an_address_or_a_number_that_cannot_work_is_refused(environ, name, value):
    environ(**{name: value})
    [mistake] = mistakes()
    assert mistake.startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["UPLOAD_TTL", "SIGNED_URL_TTL"])
def test_an_address_is_signed_for_a_week_at_most(environ, name):
    environ(**{name: "604800"})
    settings.load()
    environ(**{name: "604801"})
    [mistake] = mistakes()
    assert mistake.startswith(f"{name}: ")


def test_pictures_are_kept_at_least_until_the_deadline_of_their_job(environ):
    environ(RESULT_TTL="3600", DEADLINE="3600")
    settings.load()
    environ(RESULT_TTL="3599")
    [mistake] = mistakes()
    assert mistake.startswith("RESULT_TTL: must be at least DEADLINE")


@pytest.mark.parametrize("key", ["", "short", "x" * 31])
def test_a_folder_needs_a_key_that_cannot_be_guessed(environ, key):
    environ(SIGNING_KEY=key, STORAGE_URL="file:///pictures")
    assert mistakes() == ["SIGNING_KEY: must have at least 32 characters when STORAGE_URL is file://"]


def test_a_bucket_needs_no_key(environ):
    environ(SIGNING_KEY="", STORAGE_URL="gs://bucket/prefix")
    assert settings.load().storage_url == "gs://bucket/prefix"


def test_no_mistake_repeats_a_secret(environ):
    environ(SIGNING_KEY="hunter2", BROKER_URL="kafka://user:hunter2@x", REDIS_URL="redis://:hunter2@x:port")
    assert len(mistakes()) == 3
    assert "hunter2" not in "".join(mistakes())


def test_the_key_is_not_in_the_settings_as_text(environ):
    environ()
    assert KEY not in repr(settings.load())
    assert KEY not in str(settings.load().model_dump())


def test_settings_do_not_change_while_the_process_runs(environ):
    environ()
    with pytest.raises(ValueError, match="frozen"):
        settings.load().lease = 1


def test_clients_are_told_the_public_address(environ):
    environ(PUBLIC_URL="https://pictures.example/")
    assert settings.load().base_url == "https://pictures.example"


@pytest.mark.parametrize(("url", "embedded"), [("amqp://x", False), ("redis://x", True), ("rediss://x", True)])
def test_a_redis_as_broker_is_the_embedded_mode(environ, url, embedded):
    environ(BROKER_URL=url)
    assert settings.load().embedded is embedded


def test_a_client_asks_this_machine_without_a_key_unless_it_is_told(monkeypatch):
    monkeypatch.delenv("DARKROOM_URL", raising=False)
    monkeypatch.setenv("DARKROOM_API_KEY", "")
    known = settings.load_client()
    assert (known.url, known.api_key.get_secret_value()) == ("http://127.0.0.1:8000", "")


@pytest.mark.parametrize("url", ["nowhere", "ftp://x", "http://", "//x"])
def test_a_clients_mistakes_are_told_together_and_its_key_is_not(monkeypatch, url):
    monkeypatch.setenv("DARKROOM_URL", url)
    monkeypatch.setenv("DARKROOM_API_KEY", "hunter2 \n")
    with pytest.raises(SettingsError) as refused:
        settings.load_client()
    lines = str(refused.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["DARKROOM_URL", "DARKROOM_API_KEY"]
    assert "hunter2" not in str(refused.value)


def test_what_the_environment_holds_of_the_settings_is_known(environ, monkeypatch):
    environ(LEASE="2")
    monkeypatch.setenv("REDIS_URL", "")
    assert settings.given() == {"signing_key", "lease"}


def test_an_option_of_redis_that_there_is_not_is_told_before_anything_is_asked():
    with pytest.raises(SettingsError, match=r"REDIS_URL: .*'bogus'"):
        make_redis(settings.Settings(redis_url="redis://host/0?bogus=1", signing_key="k" * 32), "web")
