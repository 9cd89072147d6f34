# celery-exporter, called as its official image is. Only for script/check-images, where images cannot be pulled.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY requirements/celery-exporter.txt /
RUN pip install --require-hashes --no-deps -r /celery-exporter.txt
USER 1000:1000
CMD ["python", "-c", "from src.cli import cli; cli(auto_envvar_prefix='CE')"]
