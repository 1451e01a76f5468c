# A stand-in for docker.io/prom/prometheus where no image registry can be reached: this machine's programs (build context
# `programs`: the directory of prometheus and promtool), with the official image's user and directories.
# hadolint takes build contexts for stages that are missing (DL3022).
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim
FROM ${PYTHON_IMAGE}
# hadolint ignore=DL3022
COPY --from=programs prometheus promtool /usr/local/bin/
RUN install -d -o 65534 -g 65534 /prometheus
USER 65534
WORKDIR /prometheus
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["prometheus"]
