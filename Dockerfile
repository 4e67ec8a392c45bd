# asid in a container: slim, not root, a real pid 1 (tini reaps what dies), nothing written but under /tmp.
#
#   docker build -t asid .
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL asid
#   docker exec CONTAINER asid inject nmi c0h1
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin asid

WORKDIR /opt/asid
COPY pyproject.toml README.md LICENSE ./
COPY asid ./asid
COPY configs ./configs
RUN pip install --no-cache-dir --no-compile .
COPY clients ./clients

# Sockets and runs go below /tmp, which may be the only place that can be written. Bytecode is not written at all.
ENV XDG_STATE_HOME=/tmp/state \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001

HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 CMD ["asid", "status", "--expect", "healthy"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["asid", "up", "configs/smt2.toml"]
