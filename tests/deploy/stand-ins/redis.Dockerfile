# Debian's Redis, called as the official image is. Only for script/check-images, where images cannot be pulled.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && install -d -o 999 -g 999 /data
WORKDIR /data
USER 999:999
