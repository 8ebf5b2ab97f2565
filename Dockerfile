# kvatlas: router, indexer and simulated engine in one image; the command's first argument says which.
#
#   docker build -t kvatlas .
#   docker build -t kvatlas --build-arg BASE=registry.example/python@sha256:... .
#
# BASE needs python3 >= 3.11 with venv, and CA certificates; for a release name it by digest.
# Where packages come from is pip's own configuration: mount a pip.conf to /etc/pip.conf for the
# build if the default index will not do. Nothing of it stays in the image.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
# Dependencies first: they change less often than the code, and only locked files are accepted.
COPY requirements/runtime.txt requirements/runtime.txt
RUN ["python3", "-m", "venv", "/opt/kvatlas"]
RUN ["/opt/kvatlas/bin/pip", "install", "--no-cache-dir", "--no-deps", "--require-hashes", "--only-binary=:all:", "--requirement", "requirements/runtime.txt"]
# kvatlas/ holds links to the folders beside it, so all of them must be here.
COPY . .
RUN ["/opt/kvatlas/bin/pip", "install", "--no-cache-dir", "--no-deps", "."]
RUN ["/opt/kvatlas/bin/pip", "check"]
RUN ["/opt/kvatlas/bin/pip", "uninstall", "--yes", "pip"]

FROM ${BASE}
COPY --from=build /opt/kvatlas /opt/kvatlas
# The root is read-only where it is deployed; /tmp is the only place to write.
ENV PATH=/opt/kvatlas/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface
WORKDIR /tmp
# A number, so that runAsNonRoot can be checked without reading /etc/passwd.
USER 10001:10001
EXPOSE 8080 9090 9091
ENTRYPOINT ["/opt/kvatlas/bin/kvatlas"]
CMD ["--help"]
