# Debian's NGINX, called as the official image is. Only for script/check-images, where images cannot be pulled.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light curl
