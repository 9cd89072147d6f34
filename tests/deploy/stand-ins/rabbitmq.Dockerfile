# Debian's RabbitMQ, called as the official image is. Only for script/check-images, where images cannot be pulled.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends rabbitmq-server && \
    chown -R 999:999 /var/lib/rabbitmq && mkdir -p /etc/rabbitmq/conf.d && \
    echo '[rabbitmq_management,rabbitmq_prometheus].' >/etc/rabbitmq/enabled_plugins
# Open to any user, as in the official image.
RUN chmod 777 /var/log/rabbitmq
# The server's own scripts: Debian's change to a user of theirs first.
ENV PATH=/usr/lib/rabbitmq/bin:$PATH HOME=/var/lib/rabbitmq RABBITMQ_LOGS=-
USER 999:999
CMD ["rabbitmq-server"]
