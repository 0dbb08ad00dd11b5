# The agent, overlayctl and the static CNI plugin. docs/kubernetes.md says how
# it is run: read-only, with NET_ADMIN and NET_RAW alone.
#   docker build -t overlay-fabric:0.1.0 .
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev make musl-tools python3-pip
COPY manifests/image/requirements.lock /src/
# No pip in the end: the environment is filled from outside. With an index or a
# certificate authority of one's own: --secret id=pip.conf,src=/etc/pip.conf,
# and id=ca.crt for a file that it names as /run/secrets/ca.crt.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt \
    python3 -m venv --without-pip /opt/overlay \
 && pip --python /opt/overlay/bin/python3 install --no-cache-dir --no-compile --no-deps \
    --require-hashes -r /src/requirements.lock
COPY . /src/
RUN make -s -C /src/cni/shim BUILD=/opt/shim \
 && /src/manifests/image/assemble /src /opt/overlay

FROM ${BASE} AS root
RUN apt-get update \
 && apt-get install -y -qq --no-install-recommends iptables nftables python3
COPY --from=build /opt/overlay /opt/overlay
COPY --from=build /opt/shim/overlay /usr/lib/overlay/overlay
COPY manifests/image/sbom.py manifests/image/trim /usr/lib/overlay/image/
RUN chmod a-w /opt/overlay \
 && /usr/lib/overlay/image/trim \
 && python3 -I /usr/lib/overlay/image/sbom.py /opt/overlay > /usr/lib/overlay/sbom.cdx.json \
 && rm -r /usr/lib/overlay/image

# Anew, so that what was taken out is in no layer.
FROM scratch
COPY --from=root / /
# Compiled already; nothing writes beside the code.
ENV PATH=/opt/overlay/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title=overlay-fabric \
      org.opencontainers.image.version=0.1.0 \
      org.opencontainers.image.licenses=Apache-2.0
STOPSIGNAL SIGTERM
CMD ["overlayd"]
