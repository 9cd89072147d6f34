# Flower, called as its official image is. Only for script/check-images, where images cannot be pulled.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN pip install flower
USER 1000:1000
CMD ["celery", "flower"]
